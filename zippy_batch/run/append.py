"""append: files that an archive does not have yet become shards of it.

list, compare by path -> plan -> staging: old parts linked, new ones coded -> published over the old archive
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import LABELS, AppendOptions, ArchiveOptions, RunOptions
from zippy_batch.errors import UsageError
from zippy_batch.run.archive_shard import ArchiveJob
from zippy_batch.run.copy_rows import CopyPlan, holds, rows_of_shard, shown_place
from zippy_batch.run.executor import run_units, settle_device
from zippy_batch.run.pipeline import Clock, Codecs, Watch, codec_maker, models_for_archive
from zippy_batch.run.plan import ArchivePlan, plan_archive, source_states
from zippy_batch.run.report import Done, count_text, rounded, size_text
from zippy_batch.run.rewrite import Kept, keep_shards, left_after, open_rewriting, publish, recover
from zippy_batch.run.rows import model_of
from zippy_batch.run.staging import Staging, refuse_output
from zippy_batch.sources import Source, Wanted, list_source
from zippy_batch.sources.clashes import refuse_restored_clashes
from zippy_batch.sources.directory import Files, Listing, SourceFile
from zippy_batch.stores.object_path import Place, place

_NOT_TAKEN = ("model", "exact_model", "labels", "label_pattern", "device", "input")
"""Options that an archive does not record, or not so that they could be used again."""


@dataclass(frozen=True)
class AppendReport:
    path: str
    source: str
    listed: int
    """Files of the source."""
    added: int
    updated: int
    rows: int
    """Of the archive, now."""
    archive_bytes: int
    seconds: float

    exit_code = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "source": self.source,
            "files_listed": self.listed,
            "files_added": self.added,
            "files_updated": self.updated,
            "files": self.rows,
            "archive_bytes": self.archive_bytes,
            "seconds": rounded(self.seconds, 3),
        }

    def lines(self, columns: int | None = None) -> list[str]:
        return [
            f"{self.path}: {count_text(self.added, 'file')} added, {self.updated} updated, of {self.listed} in "
            f"{self.source}; now {count_text(self.rows, 'file')}, {size_text(self.archive_bytes)}, {self.seconds:.2f} s"
        ]


@dataclass(frozen=True)
class _NewFiles:
    """What of a source an archive does not have."""

    origin: Source
    listing: Listing
    fresh: Sequence[SourceFile]
    """Files to be archived, in order of their paths."""
    replaced: Mapping[int, set[int]]
    """Rows of files that have changed, by shard."""


def append(
    source: str | Place,
    archive: str | Place,
    options: AppendOptions | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> AppendReport:
    """Archive those files of `source` that `archive` does not have, by path, with its options and models.

    The archive is the old one or the new one, whatever kills the run; the same call then goes on. Where nothing is new
    nothing is written. Raises UsageError while another run works on the archive, and what `pipeline.archive` raises.
    """
    options, run, codecs, clock = options or AppendOptions(), run or RunOptions(), codecs or Codecs(), Clock(progress)
    source, archive, started = place(source), place(archive), time.monotonic()
    recover(archive)
    with ArchiveReader.open(archive) as opened:
        coding = _options(opened, options, settle_device(options.device, run.address))
        refuse_output(source, archive, overwrite=True)
        found = _find(source, opened, coding, options.update)
        updated = sum(map(len, found.replaced.values()))
        if found.fresh:
            _add(opened, found, coding, run, clock, codecs)
    with ArchiveReader.open(archive) as now:
        return AppendReport(
            path=shown_place(archive),
            source=shown_place(source),
            listed=len(found.listing.files),
            added=len(found.fresh) - updated,
            updated=updated,
            rows=now.row_count,
            archive_bytes=now.size_bytes,
            seconds=time.monotonic() - started,
        )


def _options(opened: ArchiveReader, wish: AppendOptions, device: str) -> ArchiveOptions:
    """Those that the archive was made with. Raises UsageError where it does not say how to label more files."""
    recorded = opened.info.options
    names = {one.name for one in fields(ArchiveOptions)} - {*_NOT_TAKEN}
    given: dict[str, Any] = {}
    given |= {name: tuple(v) if isinstance(v, list) else v for name, v in recorded.items() if name in names}
    labels = wish.labels or str(recorded.get("labels", "auto"))
    if wish.labels is None and labels not in LABELS:
        raise UsageError(
            f"the labels of {opened.path} came from a {labels}; say where those of the new files come from, by --labels"
        )
    return ArchiveOptions(**given, labels=labels, device=device, input=wish.input)


def _find(source: Place, opened: ArchiveReader, options: ArchiveOptions, update: bool) -> _NewFiles:
    origin, listing = list_source(source, Wanted.of(options))
    there = _rows_by_path(opened)
    fresh: list[SourceFile] = []
    replaced: dict[int, set[int]] = {}
    for file in listing.files:
        known = there.get(file.path)
        if known is None:
            fresh.append(file)
        elif update and known[:2] != (file.size_bytes, file.mtime_s):
            fresh.append(file)
            replaced.setdefault(known[2], set()).add(known[3])
    if fresh and options.exact != "always":
        refuse_restored_clashes(source, listing.files, lambda file: origin.reader((file,))(file))
    return _NewFiles(origin, listing, fresh, replaced)


def _rows_by_path(opened: ArchiveReader) -> dict[bytes, tuple[int, int, int, int]]:
    """Source bytes, time, shard and row of each path. Raises DamagedRow for one that is lost."""
    found = {}
    for shard in opened.shards():
        columns = opened.read_columns(shard, ("source_bytes", "mtime_s"))
        facts = zip(columns["source_bytes"], columns["mtime_s"], strict=True)
        for row, (path, (size_bytes, mtime_s)) in enumerate(zip(opened.paths(shard), facts, strict=True)):
            if path is None:
                path = opened.sound_rows(shard, [row])[0].path
            found[path] = (size_bytes, mtime_s, shard, row)
    return found


def _add(
    opened: ArchiveReader, found: _NewFiles, options: ArchiveOptions, run: RunOptions, clock: Clock, codecs: Codecs
) -> None:
    models = _models(opened, options, codecs)
    listing = replace(found.listing, files=Files(found.fresh))
    new = plan_archive(listing, options, {codec: model.id for codec, model in models.items()})
    shards = left_after(opened, found.replaced)
    rows = (*(rows_of_shard(shard, [opened]) for shard in shards), *new.rows)
    plan = CopyPlan((opened,), (b"",), shards, _info(opened, models, rows))
    with open_rewriting(plan, {"command": "append", "new files": new.fingerprint}) as staging:
        kept = Kept({})
        if not staging.assembled():
            kept = keep_shards(plan, staging)
            job = ArchiveJob(
                found.origin, staging.parts.absolute(), new.options, models, codec_maker(codecs, new), plan.info
            )
            _code(job, new, staging, run, clock)
        publish(staging, plan, kept)


def _code(job: ArchiveJob, new: ArchivePlan, staging: Staging, run: RunOptions, clock: Clock) -> None:
    """Archive the new shards, which come after those of the archive, but for those that an earlier run committed."""
    first, states = len(job.info.shards) - len(new), source_states(new)
    if staging.source_states() != states:
        for shard in staging.committed():
            if shard >= first:
                staging.discard(shard)
        staging.record_source_states(states)
    done = {i for i in staging.committed() if i >= first and holds(staging.part(i), job.info.shards[i])}
    todo = [i for i in range(len(new)) if first + i not in done]
    work = Done(sum(new.rows[i] for i in todo), sum(map(new.source_bytes, todo)))
    layout = clock.expect(work, len(todo), new.options.device, run)
    units = (replace(new.shard(i), index=first + i) for i in todo)
    if todo:
        for result in run_units(job, units, layout, clock.tick, clock.settle):
            staging.require(result.index)
            clock.shard_done()


def _models(opened: ArchiveReader, options: ArchiveOptions, codecs: Codecs) -> dict[str, Model]:
    """The archive's own, and for a codec that it has no rows of, the one that is built in."""
    models = models_for_archive(options, codecs)
    own = {codec: model_of(opened, codec, codecs.find) for codec in models if codec in opened.info.models}
    return models | own


def _info(opened: ArchiveReader, models: Mapping[str, Model], rows: tuple[int, ...]) -> ArchiveInfo:
    ids = {codec: model.id for codec, model in models.items()}
    files = {codec: model.data for codec, model in models.items() if not model.builtin}
    return ArchiveInfo(
        FORMAT_VERSION,
        {**ids, **opened.info.models},
        opened.info.options,
        rows,
        {**files, **opened.info.model_files},
    )
