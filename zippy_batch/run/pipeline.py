"""archive, restore, verify, stats: plan -> workers -> commit -> report.

    archive   list (sources) -> plan -> staging -> shards on workers, parts committed -> join, publish -> report
    restore   paths -> check every target -> shards on workers, files renamed into place -> report
    verify    paths -> shards on workers -> report
    stats     columns -> report

Each is the same in process and on a cluster. `executor` decides who works; `archive_shard`, `restore_shard` and
`verify_shard` say what a worker does.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import (
    CODECS,
    FORMAT_VERSION,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
    PSNR_CAP_DB,
    Row,
)
from zippy_batch.archives.writer import merge_parts, part_name
from zippy_batch.codecs.model_file import Model, builtin_model_by_id, load_model
from zippy_batch.config import LABELS, ArchiveOptions, RestoreOptions, RunOptions, VerifyOptions
from zippy_batch.errors import ArchiveError, ModelError, UsageError, ZippyError
from zippy_batch.paths import display_path
from zippy_batch.run.archive_shard import ArchiveJob, commit_part
from zippy_batch.run.copy_rows import shown_place
from zippy_batch.run.encode_verified import MakeCodec, make_codec
from zippy_batch.run.estimate import (
    SAMPLE_FILES,
    WARM_UP_FILES,
    Estimate,
    Sample,
    archive_interval,
    by_suffix,
)
from zippy_batch.run.executor import (
    THREADS_PER_WORKER,
    WorkerLayout,
    choose_layout,
    run_units,
    settle_device,
    usable_cpus,
)
from zippy_batch.run.plan import ArchivePlan, Shard, plan_archive, recorded, source_states, spread
from zippy_batch.run.report import (
    ArchiveReport,
    Done,
    Finding,
    Line,
    Progress,
    Quality,
    RestoreLine,
    RestoreReport,
    RunFacts,
    Tick,
    VerifyReport,
    total_of,
)
from zippy_batch.run.restore_plan import find_bad_paths, plan_restore, restoring
from zippy_batch.run.restore_shard import RestoreJob
from zippy_batch.run.rows import model_of
from zippy_batch.run.staging import Staging, open_staging, refuse_output
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.run.verify_shard import ShardVerified, VerifyJob, VerifyUnit
from zippy_batch.sources import Source, Wanted, list_source
from zippy_batch.sources.clashes import refuse_restored_clashes
from zippy_batch.sources.directory import SourceFile
from zippy_batch.sources.selection import patterns_in
from zippy_batch.stores.object_path import Place, place

_log = logging.getLogger(__name__)

Watch = Callable[[Progress], None]
"""Called in the driver's thread as work goes on: per batch in process, per shard on Ray."""


@dataclass(frozen=True)
class Codecs:
    """Sources of models and codecs; tests put their own here."""

    load: Callable[[str], Model] = load_model
    """Finds a model by name or path."""
    find: Callable[[str], Model | None] = builtin_model_by_id
    """Built in, by id."""
    make: MakeCodec = make_codec


def archive(
    source: str | Place,
    output: str | Place,
    options: ArchiveOptions | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> ArchiveReport:
    """Archive every file of `source`, or go on where an earlier run of the same was interrupted. Either may be the
    URI of an object store (`object_path.place`).

    Raises UsageError before anything is written: for an `output` that exists (OutputExists), for staging of other
    inputs or options (StagingMismatch), for files that cannot be archived. What is committed stays when it is
    interrupted or fails.
    """
    options, run, codecs = options or ArchiveOptions(), run or RunOptions(), codecs or Codecs()
    clock, source, output = Clock(progress), place(source), place(output)
    refuse_output(source, output, run.overwrite)
    models = models_for_archive(options, codecs)
    origin, plan = _plan(source, replace(options, device=settle_device(options.device, run.address)), models)
    _refuse_too_many_groups(plan, output)
    with open_staging(output, plan.fingerprint, plan.facts, run.overwrite) as staging:
        make, info = codec_maker(codecs, plan), _info(plan, models)
        job = ArchiveJob(origin, staging.parts.absolute(), plan.options, models, make, info)
        facts, seconds = _archive_shards(job, plan, staging, run, clock)
        if not staging.is_published():
            _publish(plan, staging, models)
        report = stats(output)
    lines = tuple(replace(line, seconds=seconds.get(line.shard)) for line in report.shards)
    total = replace(report.total, seconds=None if facts.shards_resumed else facts.seconds)
    return replace(report, shards=lines, total=total, run=facts)


def estimate(
    source: str | Place,
    output: str | Place,
    options: ArchiveOptions | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> Estimate:
    """What `archive` would make of `source`, from a sample that is coded in this process. Nothing is written but to the
    directory for temporary files. Raises what `archive` raises before it writes anything."""
    options, run, codecs = options or ArchiveOptions(), run or RunOptions(), codecs or Codecs()
    clock, source, output = Clock(progress), place(source), place(output)
    refuse_output(source, output, run.overwrite)
    models = models_for_archive(options, codecs)
    origin, plan = _plan(source, replace(options, device=settle_device(options.device, run.address)), models)
    _refuse_too_many_groups(plan, output)
    files = plan.listing.files
    chosen = tuple(files[i] for i in spread(range(len(files)), SAMPLE_FILES))
    work = Done(len(chosen), sum(file.size_bytes for file in chosen))
    layout = clock.expect(work, 1, plan.options.device, RunOptions(workers=1))
    with tempfile.TemporaryDirectory(prefix="zippy-") as folder:
        job = ArchiveJob(origin, Path(folder), plan.options, models, codec_maker(codecs, plan), _info(plan, models))
        sample = _sample(job, chosen, layout.threads, clock.tick, _is_single_file(output))
    real = choose_layout(len(plan), len(files), files.size_bytes, plan.options.device, run)
    embedded = sum(map(len, job.info.model_files.values()))
    power = real.workers * max(1, real.threads) / layout.threads
    return Estimate(
        source=shown_place(source),
        output=shown_place(output),
        files=len(files),
        source_bytes=files.size_bytes,
        shards=len(plan),
        kinds=by_suffix(file.path for file in files),
        sample=sample,
        archive=archive_interval(sample, len(files), files.size_bytes, len(plan)).plus(embedded),
        is_single_file=_is_single_file(output),
        workers=real.workers or None,
        seconds=sample.seconds * len(files) / len(chosen) / power if power else None,
        notes=plan.listing.notes,
    )


def _sample(job: ArchiveJob, files: Sequence[SourceFile], threads: int, tick: Tick, is_single_file: bool) -> Sample:
    """Two parts, of one half of the rows and of all, tell what a part takes beside its payloads."""
    work = job.start(threads)
    work(Shard(0, tuple(files[:WARM_UP_FILES])), lambda done: None)
    done = work(Shard(1, tuple(files)), tick)
    whole, half = job.parts / part_name(1), job.parts / part_name(2)
    with ArchiveReader.open(whole) as opened:
        line, rows = _line(opened, 0), [row for row in opened.read_rows(0) if isinstance(row, Row)]
    commit_part(half, rows[: len(rows) // 2], job.info, verify=False)
    beside_half, beside = (
        _published_bytes(part, job, is_single_file) - sum(len(row.payload) for row in some)
        for part, some in ((half, rows[: len(rows) // 2]), (whole, rows))
    )
    per_row = (beside - beside_half) / (len(rows) - len(rows) // 2)
    sizes = [(row.source_bytes, len(row.payload)) for row in rows]
    return Sample(line, sizes, per_row, beside - per_row * len(rows), done.seconds)


def _published_bytes(part: Place, job: ArchiveJob, is_single_file: bool) -> int:
    """Size of a part in a directory, or of a single file that is made of it."""
    assert isinstance(part, Path)
    if is_single_file:
        joined = part.with_suffix(".joined")
        with ArchiveReader.open(part) as opened:
            rows = opened.info.shards
        merge_parts([part], joined, replace(job.info, shards=rows, model_files={}))
        part = joined
    return part.stat().st_size


def codec_maker(codecs: Codecs, plan: ArchivePlan) -> MakeCodec:
    effort = plan.options.effort
    return partial(make_codec, effort=effort) if effort and codecs.make is make_codec else codecs.make


def models_for_archive(options: ArchiveOptions, codecs: Codecs) -> dict[str, Model]:
    """The models that may be needed, by codec. Raises UsageError for one of the other codec."""
    names = {"latent": ("--model", options.model), "exact": ("--exact-model", options.exact_model)}
    models = {}
    for codec, (option, name) in names.items():
        if options.exact == {"latent": "always", "exact": "never"}[codec]:
            continue
        models[codec] = codecs.load(name)
        if models[codec].codec != codec:
            raise UsageError(f"{option} {name} is a model of the {models[codec].codec} codec, not of the {codec} one")
    return models


def _plan(source: Place, options: ArchiveOptions, models: Mapping[str, Model]) -> tuple[Source, ArchivePlan]:
    if options.exclude_from is not None:
        options = replace(options, exclude=(*options.exclude, *patterns_in(options.exclude_from)), exclude_from=None)
    origin, listing = list_source(source, Wanted.of(options))
    if not listing.files:
        notes = "".join(f"; {note}" for note in listing.notes)
        raise UsageError(f"nothing to archive: there is no file in {source}{notes}")
    if options.exact != "always":
        refuse_restored_clashes(source, listing.files, lambda file: origin.reader((file,))(file))
    return origin, plan_archive(listing, options, {codec: model.id for codec, model in models.items()})


def _refuse_too_many_groups(plan: ArchivePlan, output: Place) -> None:
    """Raises UsageError for a single file that is sure to have more row groups than a reader takes."""
    groups = sum(max(1, -(-rows // MAX_ROWS_PER_GROUP)) for rows in plan.rows)
    if not _is_single_file(output) or groups <= MAX_GROUPS:
        return
    larger = " or choose a larger --shard-size" if plan.options.shard_size < MAX_ROWS_PER_GROUP else ""
    raise UsageError(
        f"{output} would have at least {groups} row groups, one or more for each shard, and a single file holds at "
        f"most {MAX_GROUPS}; write a directory (an output that does not end in .parquet){larger}"
    )


def _is_single_file(output: Place) -> bool:
    return output.suffix == ".parquet"


def _archive_shards(
    job: ArchiveJob, plan: ArchivePlan, staging: Staging, run: RunOptions, clock: Clock
) -> tuple[RunFacts, dict[int | None, float]]:
    """Archive the shards that are not committed; returns the seconds of work on each."""
    done = _taken_over(staging, plan, clock)
    todo = [index for index in range(len(plan)) if index not in done]
    work = Done(sum(plan.rows[index] for index in todo), sum(map(plan.source_bytes, todo)))
    layout = clock.expect(work, len(todo), plan.options.device, run)
    seconds: dict[int | None, float] = {}
    worked = Done()
    if todo:
        for result in run_units(job, map(plan.shard, todo), layout, clock.tick, clock.settle):
            staging.require(result.index)
            seconds[result.index] = result.seconds
            worked += result.done
            clock.shard_done()
    facts = clock.facts(plan.options.device)
    facts = replace(
        facts,
        shards_resumed=len(done),
        empty_directories=plan.listing.empty_directories,
        notes=plan.listing.notes,
        dropped=worked.dropped,
    )
    return facts, seconds


def _taken_over(staging: Staging, plan: ArchivePlan, clock: Clock) -> set[int]:
    """Shards that an earlier run did. What is not as it wrote it is named, and done again."""
    if staging.is_published():
        return set(range(len(plan)))
    states, before = source_states(plan), staging.source_states()
    changed = {shard for shard in range(len(plan)) if before[shard : shard + 1] != states[shard : shard + 1]}
    if assembled := staging.assembled():
        if changed:
            staging.take_apart()
        elif _holds(assembled, plan, range(len(plan))):
            return set(range(len(plan)))
        else:
            _log.warning("%s is no longer what was written there; it is made again. Check the disk", assembled)
            staging.take_apart()
    _discard(changed & staging.committed(), staging)
    if changed:
        staging.record_source_states(states)
    committed = sorted(shard for shard in staging.committed() if shard < len(plan))
    found = set()
    for shard, is_whole in zip(committed, _check_parts(committed, plan, staging, clock), strict=True):
        if is_whole:
            found.add(shard)
        else:
            _log.warning(
                "%s is no longer what was written there; its shard is done again. Check the disk", staging.part(shard)
            )
    return found


def _check_parts(shards: Sequence[int], plan: ArchivePlan, staging: Staging, clock: Clock) -> Iterator[bool]:
    """Whether the parts of an earlier run hold these shards, in order, several at a time."""
    total, checked = sum(plan.rows[shard] for shard in shards), 0
    threads = OrderedThreadPool(min(usable_cpus(), THREADS_PER_WORKER))
    results = threads.in_order(lambda shard: _holds(staging.part(shard), plan, [shard]), shards)
    for count, (shard, is_whole) in enumerate(zip(shards, results, strict=True), start=1):
        checked += plan.rows[shard]
        clock.tell_check(checked, total, count, len(shards))
        yield is_whole


def _discard(shards: Set[int], staging: Staging) -> None:
    """Shards that have files which were touched since an earlier run read them."""
    for shard in shards:
        staging.discard(shard)
    if shards:
        _log.warning(
            "files of %d finished shard%s have changed since an earlier run read them; %s done again",
            *((1, "", "it is") if len(shards) == 1 else (len(shards), "s", "they are")),
        )


def _holds(path: Place, plan: ArchivePlan, shards: Sequence[int]) -> bool:
    """Whether a file of an earlier run holds these shards, in every row."""
    try:
        with ArchiveReader.open(path) as opened:
            return opened.info.shards == tuple(map(plan.rows.__getitem__, shards)) and all(
                opened.whole_sizes(i) is not None and opened.paths(i) == [file.path for file in plan.shard(shard).files]
                for i, shard in enumerate(shards)
            )
    except ZippyError:
        return False


def _info(plan: ArchivePlan, models: Mapping[str, Model]) -> ArchiveInfo:
    files = {codec: model.data for codec, model in models.items() if not model.builtin}
    ids = {codec: model.id for codec, model in models.items()}
    options = recorded(plan.options) | plan.recorded_labels
    return ArchiveInfo(FORMAT_VERSION, ids, options, plan.rows, files)


def _publish(plan: ArchivePlan, staging: Staging, models: Mapping[str, Model]) -> None:
    """Parts -> the whole archive -> its place. Raises ArchiveError for a part that is damaged."""

    def describe(used: Iterable[str]) -> ArchiveInfo:
        return _info(plan, {codec: model for codec, model in models.items() if codec in used})

    try:
        staging.publish(len(plan), describe)
    except ArchiveError as error:
        raise ArchiveError(
            f"a shard that was done is no longer what was written: {error}. Check the disk, and give the same command "
            f"again, which does that shard anew"
        ) from error


def restore(
    archive_path: str | Place,
    destination: str | Place,
    options: RestoreOptions | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> RestoreReport:
    """Bring back the files of an archive below `destination`, under their own paths and times.

    Before anything is written raises OutputExists for files that are there, unless `run.overwrite`, and ArchiveError
    for paths that must not be written. Raises DamagedRow at the first damaged row, or with `options.keep_going`
    reports them. Interrupted, the same call goes on: it knows the files of the first by what it left in `destination`.
    """
    options, run, codecs = options or RestoreOptions(), run or RunOptions(), codecs or Codecs()
    archive_path, destination = place(archive_path), place(destination)
    if not isinstance(destination, Path):
        raise UsageError(f"cannot restore into {destination}: files are restored to a directory of this machine")
    if options.reference is not None and not options.reference.is_dir():
        raise UsageError(f"--reference {options.reference}: not a directory")
    clock = Clock(progress)
    lines: list[RestoreLine] = []
    with ArchiveReader.open(archive_path, options.keep_going, options.max_row_bytes) as opened:
        planned = plan_restore(opened, options)
        models = _models_of(opened, planned.codecs, options.keep_going, codecs)
        options = replace(options, device=settle_device(options.device, run.address) if models else "cpu")
        if options.reference is not None:
            options = replace(options, reference=options.reference.absolute())
        with restoring(opened, destination, planned, options, run.overwrite) as temporary:
            layout = clock.expect(Done(planned.rows, planned.source_bytes), len(planned.units), options.device, run)
            job = RestoreJob(
                archive_path.absolute(), destination.absolute(), temporary.absolute(), options, models, codecs.make
            )
            for result in run_units(job, planned.units, layout, clock.tick, clock.settle):
                lines.append(result.line)
                clock.shard_done()
    lines.sort(key=lambda line: line.shard or 0)
    facts = clock.facts(options.device)
    repairs = tuple(Finding(shown_place(archive_path), repair) for repair in opened.repairs)
    return RestoreReport(
        path=shown_place(archive_path),
        destination=shown_place(destination),
        shards=tuple(lines),
        total=replace(sum(lines, start=RestoreLine(None, damaged=repairs)), seconds=facts.seconds),
        selected=planned.rows,
        with_reference=options.reference is not None,
        run=facts,
    )


def verify(
    archive_path: str | Place,
    against: str | Place | None = None,
    options: VerifyOptions | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> VerifyReport:
    """Check every row's checksum; with `options.deep` decode every row; with `against` compare each with its original
    there. With `options.sample`, only so many rows, chosen at random, and no hash of a whole file.

    Damage is reported, not raised. Raises ArchiveError where there is nothing to read rows from, and UsageError for a
    sample that is to be compared with originals.
    """
    options, run, codecs = options or VerifyOptions(), run or RunOptions(), codecs or Codecs()
    sample, deep = options.sample, options.deep
    if sample and against is not None:
        raise UsageError("a sample is not compared with originals: leave out one of the two")
    clock, archive_path = Clock(progress), place(archive_path)
    against = None if against is None else place(against)
    results: list[ShardVerified] = []
    with ArchiveReader.open(archive_path, True, options.max_row_bytes) as opened:
        matched = _match(opened, against, options.input) if against else _Matched(_units(opened, sample))
        models = _models_of(opened, opened.info.models, False, codecs) if deep or against else {}
        device = settle_device("auto", run.address) if models else "cpu"
        source_bytes = sum(opened.payload_bytes(shard) for shard in opened.shards())
        rows = min(sample, opened.row_count) if sample else opened.row_count
        layout = clock.expect(Done(rows, source_bytes), len(matched.units), device, run)
        job = VerifyJob(
            archive_path.absolute(), matched.source, options, device, models, codecs.make, matched.with_labels
        )
        for result in run_units(job, matched.units, layout, clock.tick, clock.settle):
            results.append(result)
            clock.shard_done()
        problems, bad_paths = (opened.problems, []) if sample else (opened.check_files(), find_bad_paths(opened))
    results.sort(key=lambda result: result.index)
    return VerifyReport(
        path=shown_place(archive_path),
        rows=opened.row_count,
        decoded=sum(result.decoded for result in results),
        damaged=(*(finding for result in results for finding in result.damaged), *bad_paths),
        problems=tuple(problems),
        against=shown_place(against) if against else None,
        missing=tuple(matched.missing),
        extra=tuple(matched.extra),
        differing=tuple(finding for result in results for finding in result.differing),
        unpromised=sum(result.unpromised for result in results),
        labels_compared=against is None or matched.with_labels or "labels" not in opened.info.options,
        run=clock.facts(device),
        sampled=rows if sample else None,
        checked_bytes=sum(result.done.stored_bytes for result in results) if sample else opened.size_bytes,
    )


def _units(opened: ArchiveReader, sample: int | None) -> list[VerifyUnit]:
    """All shards, or those of a sample of rows."""
    if not sample:
        return [VerifyUnit(shard) for shard in opened.shards()]
    starts = [0, *accumulate(opened.info.shards)]
    chosen: dict[int, list[int]] = {}
    for number in sorted(random.sample(range(opened.row_count), min(sample, opened.row_count))):
        shard = bisect_right(starts, number) - 1
        chosen.setdefault(shard, []).append(number - starts[shard])
    return [VerifyUnit(shard, rows=tuple(rows)) for shard, rows in chosen.items()]


@dataclass(frozen=True)
class _Matched:
    """Rows of an archive and the files of a source, by path."""

    units: Sequence[VerifyUnit]
    missing: Sequence[Finding] = ()
    extra: Sequence[Finding] = ()
    source: Source | None = None
    with_labels: bool = False


def _as_archived(options: Mapping[str, object], input: str) -> Wanted:
    """What an archive was asked of its source; labels only where the source has them itself."""
    labels = options.get("labels")
    # with a table, the columns are the table's
    names = ("image_column", "encoding", *(() if labels == "table" else ("name_column", "label_column")))
    given: dict[str, Any] = {name: value for name in names if isinstance(value := options.get(name), str)}
    for name in ("include", "exclude"):
        patterns = options.get(name)
        given[name] = tuple(map(str, patterns)) if isinstance(patterns, list) else ()
    labels = labels if isinstance(labels, str) and labels in LABELS else "none"
    return Wanted(input, labels, leave_out=True, **given)


def _match(opened: ArchiveReader, against: Place, input: str) -> _Matched:
    source, listing = list_source(against, _as_archived(opened.info.options, input))
    files = {file.path: file for file in listing.files}
    units, extra, seen = [], [], set()
    for shard in opened.shards():
        paths = opened.paths(shard)
        units.append(VerifyUnit(shard, {path: files[path] for path in paths if path in files}))
        for row, path in enumerate(paths):
            if path is not None and (path not in files or path in seen):
                what = "is there twice" if path in seen else "no such file"
                extra.append(Finding(display_path(path), what, shard, row))
            seen.add(path)
    missing = [Finding(display_path(path), "no such row") for path in files if path not in seen]
    return _Matched(units, missing, extra, source, listing.files.labelled)


def stats(archive_path: str | Place, keep_going: bool = False) -> ArchiveReport:
    """Sizes and quality as the archive tells them; no payload is read and no checksum checked.

    Raises ArchiveError for damage; with `keep_going`, what is lost is left out of sums.
    """
    archive_path = place(archive_path)
    with ArchiveReader.open(archive_path, allow_damage=keep_going) as opened:
        lines = tuple(_line(opened, shard, keep_going) for shard in opened.shards())
        floor = opened.info.options.get("min_psnr")
        return ArchiveReport(
            path=shown_place(archive_path),
            shards=lines,
            total=total_of(lines, opened.size_bytes),
            models=opened.info.models,
            options=opened.info.options,
            min_psnr_db=float(floor) if isinstance(floor, int | float) else None,
        )


def _line(opened: ArchiveReader, shard: int, keep_going: bool = False) -> Line:
    names = ("codec", "raw_reason", "width", "height", "quality", "source_bytes", "psnr", "ssim")
    columns = opened.known_columns(shard, names)[0] if keep_going else opened.read_columns(shard, names)
    rows = list(zip(*columns.values(), strict=True))
    kinds = {codec: [row for row in rows if row[0] == codec] for codec in CODECS}
    lossy, exact, raw = (kinds[codec] for codec in ("latent", "exact", "raw"))
    asked = opened.info.options.get("quality")
    return Line(
        shard=shard,
        images=len(rows),
        source_bytes=sum(row[5] or 0 for row in rows),
        archive_bytes=opened.shard_bytes(shard),
        lossy_images=len(lossy),
        lossy_bytes=opened.payload_bytes(shard) - opened.exact_bytes(shard),
        lossy_source_bytes=sum(row[5] or 0 for row in lossy),
        lossy_pixels=sum((row[2] or 0) * (row[3] or 0) for row in lossy),
        exact_images=len(exact),
        exact_bytes=opened.exact_bytes(shard),
        exact_source_bytes=sum(row[5] or 0 for row in exact),
        raw_bytes=sum(row[5] or 0 for row in raw),
        kept_raw=Counter(row[1] or "no reason given" for row in raw),
        raised=sum(row[4] not in (asked, None) for row in lossy),
        quality=Quality.of((row[6], row[7]) for row in lossy if _is_quality(row[6], row[7])),
    )


def _is_quality(psnr: float | None, ssim: float | None) -> bool:
    """Whether a row has both, and they are what an image can have."""
    return psnr is not None and ssim is not None and 0 <= psnr <= PSNR_CAP_DB and -1 <= ssim <= 1


def _models_of(opened: ArchiveReader, wanted: Iterable[str], keep_going: bool, codecs: Codecs) -> dict[str, Model]:
    """The models that rows of these codecs need. Raises ModelError for one that cannot be had, unless what needs none
    of it is to be restored all the same."""
    models = {}
    for codec in sorted(set(wanted) & set(opened.info.models)):
        try:
            models[codec] = model_of(opened, codec, codecs.find)
        except ModelError:
            if not keep_going:
                raise
    return models


class Clock:
    """Time and progress of one run."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch, self._started = watch, time.monotonic()
        self._total, self._done, self._shards_total, self._shards = Done(), Done(), 0, 0
        self._layout = WorkerLayout(1, 1, on_ray=False)

    def expect(self, work: Done, shards: int, device: str, run: RunOptions) -> WorkerLayout:
        """Says what is to be done, and who will do it."""
        self._total, self._shards_total = work, shards
        self._layout = choose_layout(shards, work.images, work.source_bytes, device, run)
        return self._layout

    def settle(self, layout: WorkerLayout) -> None:
        """How many workers a cluster has been found to have."""
        self._layout = layout

    def tick(self, done: Done) -> None:
        self._done += done
        self._tell()

    def shard_done(self) -> None:
        self._shards += 1
        self._tell()

    def facts(self, device: str) -> RunFacts:
        seconds, layout = time.monotonic() - self._started, self._layout
        return RunFacts(
            seconds, self._done.images, self._done.source_bytes, device, layout.workers, on_ray=layout.on_ray
        )

    def tell_check(self, images: int, images_total: int, shards: int, shards_total: int) -> None:
        """How far the check is of what an earlier run left."""
        if self._watch is not None:
            seconds = time.monotonic() - self._started
            self._watch(Progress(images, images_total, 0, 0, 0, shards, shards_total, seconds, is_check=True))

    def _tell(self) -> None:
        if self._watch is None:
            return
        self._watch(
            Progress(
                images=self._done.images,
                images_total=self._total.images,
                source_bytes=self._done.source_bytes,
                source_bytes_total=self._total.source_bytes,
                stored_bytes=self._done.stored_bytes,
                shards=self._shards,
                shards_total=self._shards_total,
                seconds=time.monotonic() - self._started,
            )
        )
