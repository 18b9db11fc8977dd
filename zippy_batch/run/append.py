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
from zippy_batch.config import LABELS, AppendOptions, ArchiveOptions, RunOptions, VerifyOptions
from zippy_batch.errors import DamagedRow, UsageError
from zippy_batch.run.archive_shard import ArchiveJob
from zippy_batch.run.copy_rows import CopyPlan, holds, rows_of_shard, shown_place
from zippy_batch.run.executor import choose_layout, run_units, settle_device
from zippy_batch.run.pipeline import Clock, Codecs, Watch, codec_maker, models_for_archive
from zippy_batch.run.plan import ArchivePlan, plan_archive, source_states
from zippy_batch.run.report import Done, count_text, rounded, size_text
from zippy_batch.run.rewrite import Kept, keep_shards, left_after, open_rewriting, publish, recover, rewritable
from zippy_batch.run.rows import model_of
from zippy_batch.run.staging import Staging, refuse_output
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.run.verify_shard import VerifyJob, VerifyUnit
from zippy_batch.sources import Source, Wanted, list_source
from zippy_batch.sources.clashes import RESTORED_FORMAT, refuse_clashes_with_rows
from zippy_batch.sources.directory import Files, Listing, SourceFile
from zippy_batch.stores.object_path import REQUESTS, ObjectPath, Place, place

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
    source, archive, started = place(source), rewritable(archive), time.monotonic()
    recover(archive)
    with ArchiveReader.open(archive) as opened:
        coding = _options(opened, options, settle_device(options.device, run.address))
        refuse_output(source, archive, overwrite=True)
        content = _ByContent(run, clock, codecs) if options.checksum else None
        found = _find(source, opened, coding, options.update, content)
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


@dataclass(frozen=True)
class _Known:
    """A row of the archive, and what of its file it says."""

    size_bytes: int
    mtime_s: int
    has_promise: bool
    """Whether the file's content can be compared with it: a lossy row that was not verified says nothing."""
    gets_suffix: bool
    """Whether the file is restored in another format, with the suffix of that behind its path."""
    shard: int
    row: int

    def is_of(self, file: SourceFile) -> bool:
        return (self.size_bytes, self.mtime_s) == (file.size_bytes, file.mtime_s)


def _find(
    source: Place, opened: ArchiveReader, options: ArchiveOptions, update: bool, content: _ByContent | None
) -> _NewFiles:
    """Find new files, and with `update` those that have changed: by size and time, or by content."""
    origin, listing = list_source(source, Wanted.of(options))
    there = _rows_by_path(opened)
    other = set[tuple[int, int]]()
    if content is not None:
        known = {file.path: file for file in listing.files if file.path in there and there[file.path].has_promise}
        other = content.changed(opened, origin, known, options.device)
    fresh: list[SourceFile] = []
    replaced: dict[int, set[int]] = {}
    for file in listing.files:
        row = there.get(file.path)
        if row is None:
            fresh.append(file)
        elif update and _has_changed(row, file, other if content and row.has_promise else None):
            fresh.append(file)
            replaced.setdefault(row.shard, set()).add(row.row)
    if fresh:
        suffixed = {path: row.gets_suffix for path, row in there.items()}
        read = None if options.exact == "always" else lambda file: origin.reader((file,))(file)
        refuse_clashes_with_rows(source, fresh, suffixed, read)
    return _NewFiles(origin, listing, fresh, replaced)


def _has_changed(row: _Known, file: SourceFile, other: set[tuple[int, int]] | None) -> bool:
    return not row.is_of(file) if other is None else (row.shard, row.row) in other


@dataclass(frozen=True)
class _ByContent:
    """Compares files with their rows as `verify --against` does."""

    run: RunOptions
    clock: Clock
    codecs: Codecs

    def changed(
        self, opened: ArchiveReader, origin: Source, files: Mapping[bytes, SourceFile], device: str
    ) -> set[tuple[int, int]]:
        """Shard and row of those files, by path, that are not those of their rows. Raises DamagedRow for a row that
        nothing can be compared with."""
        models = {codec: model_of(opened, codec, self.codecs.find) for codec in opened.info.models}
        options = VerifyOptions()
        job = VerifyJob(opened.path.absolute(), origin, options, device, models, self.codecs.make, with_labels=False)
        units = []
        for shard in opened.shards():
            some = [(row, path) for row, path in enumerate(opened.paths(shard)) if path is not None and path in files]
            originals = {path: files[path] for _, path in some}
            units += [VerifyUnit(shard, originals, tuple(row for row, _ in some))] if some else []
        checked, shards, found = 0, 0, set[tuple[int, int]]()

        def tick(done: Done) -> None:
            nonlocal checked
            checked += done.images
            self.clock.tell_check(checked, len(files), shards, len(units))

        size_bytes = sum(file.size_bytes for file in files.values())
        layout = choose_layout(len(units), len(files), size_bytes, device, self.run)
        for result in run_units(job, units, layout, tick, self.clock.settle) if units else ():
            if result.damaged:
                raise DamagedRow(f"{opened.path}: {result.damaged[0]}")
            found |= {(one.shard or 0, one.row or 0) for one in result.differing}
            shards += 1
        return found


def _rows_by_path(opened: ArchiveReader) -> dict[bytes, _Known]:
    """Raises DamagedRow for a path that is lost."""
    names = ("source_bytes", "mtime_s", "codec", "psnr", "source_format")
    # a store takes its time for an answer
    pool = OrderedThreadPool(REQUESTS if isinstance(opened.path, ObjectPath) else 1)
    read = pool.in_order(lambda shard: (opened.read_columns(shard, names), opened.paths(shard)), opened.shards())
    found = {}
    for shard, (columns, paths) in enumerate(read):
        for row, (size_bytes, mtime_s, codec, psnr, kind) in enumerate(zip(*columns.values(), strict=True)):
            path = paths[row]
            if path is None:
                path = opened.sound_rows(shard, [row])[0].path
            is_lossy = codec == "latent"
            gets_suffix = is_lossy and kind != RESTORED_FORMAT
            found[path] = _Known(size_bytes, mtime_s, not is_lossy or psnr is not None, gets_suffix, shard, row)
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
