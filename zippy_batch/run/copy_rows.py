"""Rows on their way from archives to an archive, without decoding one.

    chosen rows of opened archives -> cut_shards -> parts in a staging -> published

A shard that is taken whole keeps its row groups as they are; rows that are taken out of several are written anew, with
their payloads as they are. Rows are checked before they are copied, and damage is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import write_part
from zippy_batch.errors import ArchiveError, ModelError, UsageError
from zippy_batch.images.pixels import restored_path
from zippy_batch.paths import display_path
from zippy_batch.run.plan import IMAGES_PER_SHARD, SOURCE_BYTES_PER_SHARD
from zippy_batch.run.report import count_text, rounded, size_text
from zippy_batch.run.staging import Staging, committing, open_staging, refuse_output
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.sources.clashes import RESTORED_FORMAT
from zippy_batch.stores.object_path import Place

_THREADS = 4
_WHOLE_ROWS = IMAGES_PER_SHARD // 8
"""A shard of so many rows that is taken whole stays a shard; smaller ones are put together."""


@dataclass(frozen=True)
class Piece:
    """Rows of a shard of one of the sources."""

    source: int
    shard: int
    rows: tuple[int, ...] | None
    """Ascending, from 0 in the shard; None for all of them."""


NewShard = tuple[Piece, ...]


@dataclass(frozen=True)
class CopyPlan:
    """What an archive is made of."""

    sources: tuple[ArchiveReader, ...]
    folders: tuple[bytes, ...]
    """Put before the paths of each source; empty where they stay as they are."""
    shards: tuple[NewShard, ...]
    info: ArchiveInfo

    @property
    def is_renamed(self) -> bool:
        return any(self.folders)

    def is_verbatim(self, shard: NewShard) -> bool:
        return not self.is_renamed and len(shard) == 1 and shard[0].rows is None

    @property
    def facts(self) -> dict[str, Any]:
        """What tells this plan from another."""
        text = json.dumps([[(p.source, p.shard, p.rows) for p in shard] for shard in self.shards])
        return {
            "sources": [state_of(source) for source in self.sources],
            "folders": [display_path(folder) for folder in self.folders],
            "rows": hashlib.sha256(text.encode()).hexdigest(),
        }


@dataclass(frozen=True)
class CopyReport:
    """What `merge` and `select` made."""

    path: str
    sources: tuple[str, ...]
    rows: int
    shards: int
    verbatim: int
    """Shards whose row groups were copied as they were."""
    archive_bytes: int
    seconds: float

    exit_code = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "sources": list(self.sources),
            "files": self.rows,
            "shards": self.shards,
            "shards_copied_whole": self.verbatim,
            "archive_bytes": self.archive_bytes,
            "seconds": rounded(self.seconds, 3),
        }

    def lines(self, columns: int | None = None) -> list[str]:
        return [
            f"{self.path}: {count_text(self.rows, 'file')} in {count_text(self.shards, 'shard')}, "
            f"{size_text(self.archive_bytes)}, from {', '.join(self.sources)}",
            f"{self.verbatim} of the shards copied whole, {self.seconds:.2f} s",
        ]


def shown_place(path: Place) -> str:
    """The place as text that any stream and JSON take, also where the name is not UTF-8."""
    return display_path(os.fsencode(path)) if isinstance(path, Path) else str(path)


def state_of(source: ArchiveReader) -> str:
    """Digest of what a copy of the archive has in common with it."""
    payloads = [source.payload_bytes(shard) for shard in source.shards()]
    facts = [source.size_bytes, source.info.shards, payloads, dict(source.info.models), dict(source.info.options)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---- plan ----


def chosen_pieces(source: ArchiveReader, number: int, rows: Mapping[int, Sequence[int]] | None) -> Iterator[Piece]:
    """Pieces of these rows of an archive, by shard, or of all of them."""
    for shard in source.shards():
        count = source.info.shards[shard]
        chosen = range(count) if rows is None else rows.get(shard, ())
        if chosen:
            yield Piece(number, shard, None if len(chosen) == count else tuple(chosen))


def cut_pieces(pieces: Iterable[Piece], sources: Sequence[ArchiveReader]) -> tuple[NewShard, ...]:
    """Shards of these rows: large ones that are taken whole as they are, others together up to the size of a shard."""
    shards: list[NewShard] = []
    held: list[Piece] = []
    rows = size_bytes = 0
    for piece in pieces:
        count = rows_of_shard((piece,), sources)
        size = sources[piece.source].shard_bytes(piece.shard) * count // sources[piece.source].info.shards[piece.shard]
        is_whole = piece.rows is None and count >= _WHOLE_ROWS
        if held and (is_whole or rows + count > IMAGES_PER_SHARD or size_bytes + size > SOURCE_BYTES_PER_SHARD):
            shards.append(tuple(held))
            held, rows, size_bytes = [], 0, 0
        if is_whole:
            shards.append((piece,))
            continue
        held.append(piece)
        rows, size_bytes = rows + count, size_bytes + size
    return (*shards, tuple(held)) if held else tuple(shards)


def rows_of_shard(shard: NewShard, sources: Sequence[ArchiveReader]) -> int:
    """How many rows it will have."""
    return sum(
        sources[piece.source].info.shards[piece.shard] if piece.rows is None else len(piece.rows) for piece in shard
    )


def plan_copy(sources: Sequence[ArchiveReader], folders: Sequence[bytes], pieces: Sequence[Piece]) -> CopyPlan:
    """Raises UsageError for two rows of one path, and ModelError for sources whose rows need two models of a codec."""
    _refuse_clashes(sources, folders, pieces)
    if len(sources) > 1 and not any(folders):
        _refuse_restored_clashes(sources, pieces)
    shards = cut_pieces(pieces, sources)
    rows = tuple(rows_of_shard(shard, sources) for shard in shards)
    return CopyPlan(tuple(sources), tuple(folders), shards, common_info(sources, rows))


def common_info(sources: Sequence[ArchiveReader], shards: tuple[int, ...]) -> ArchiveInfo:
    """Models of all the sources, and the options that they share. Raises ModelError."""
    models: dict[str, tuple[str, ArchiveReader]] = {}
    files: dict[str, bytes] = {}
    for source in sources:
        for codec, model in source.info.models.items():
            known, first = models.setdefault(codec, (model, source))
            if known != model:
                raise ModelError(
                    f"{first.path} and {source.path} were coded with two models of the {codec} codec ({known[:12]} and "
                    f"{model[:12]}), and an archive has one model for each codec, since its rows name the codec alone; "
                    f"keep two archives, or archive the originals of one anew with the model of the other (not its "
                    f"restored files, which would be coded a second time)"
                )
        files |= source.info.model_files
    options = dict(sources[0].info.options)
    for source in sources[1:]:
        options = {k: v for k, v in options.items() if k in source.info.options and source.info.options[k] == v}
    return ArchiveInfo(FORMAT_VERSION, {codec: model for codec, (model, _) in models.items()}, options, shards, files)


def _refuse_clashes(sources: Sequence[ArchiveReader], folders: Sequence[bytes], pieces: Sequence[Piece]) -> None:
    seen: dict[bytes, int] = {}
    clashes = 0
    first = ""
    for piece in pieces:
        for path in _paths_of(piece, sources, folders):
            other = seen.setdefault(path, piece.source)
            if other != piece.source:
                clashes += 1
                names = sources[other].path, sources[piece.source].path
                first = first or f"{display_path(path)} is in {names[0]} and in {names[1]}"
    if clashes:
        more = f" (and {clashes - 1} more)" if clashes > 1 else ""
        raise UsageError(
            f"{first}{more}: a path names one file of an archive; "
            f"--prefix puts the name of its archive before each path"
        )


def _refuse_restored_clashes(sources: Sequence[ArchiveReader], pieces: Sequence[Piece]) -> None:
    """Raises UsageError where a restore could not write the files of two archives below one directory."""
    files: dict[bytes, tuple[bytes, int]] = {}
    for piece in pieces:
        source = sources[piece.source]
        columns = source.read_columns(piece.shard, ("codec", "source_format"))
        facts = [*zip(columns["codec"], columns["source_format"], strict=True)]
        chosen = range(len(facts)) if piece.rows is None else piece.rows
        for row, path in zip(chosen, _paths_of(piece, sources, [b""] * len(sources)), strict=True):
            codec, kind = facts[row]
            target = restored_path(path, kind or "", RESTORED_FORMAT) if codec == "latent" else path
            _refuse_other(files.setdefault(target, (path, piece.source)), (path, piece.source), sources, target)
    for target, found in files.items():
        cut = target.rfind(b"/")
        while cut > 0:
            if target[:cut] in files:
                _refuse_other(files[target[:cut]], found, sources, target[:cut])
            cut = target.rfind(b"/", 0, cut)


def _refuse_other(
    one: tuple[bytes, int], other: tuple[bytes, int], sources: Sequence[ArchiveReader], target: bytes
) -> None:
    if one[1] != other[1]:
        named = [f"{display_path(path)} of {sources[source].path}" for path, source in (one, other)]
        raise UsageError(
            f"{named[0]} and {named[1]} cannot be restored side by side: {display_path(target)} would be both; "
            f"--prefix puts the name of its archive before each path"
        )


def _paths_of(piece: Piece, sources: Sequence[ArchiveReader], folders: Sequence[bytes]) -> Iterator[bytes]:
    """Raises DamagedRow for a path that is lost."""
    source = sources[piece.source]
    paths = source.paths(piece.shard)
    for row in range(len(paths)) if piece.rows is None else piece.rows:
        path = paths[row]
        if path is None:
            source.sound_rows(piece.shard, [row])
            raise ArchiveError(f"{source.path}: the path of row {row} of shard {piece.shard} is lost")
        yield folders[piece.source] + path


# ---- copying ----


def refuse_outputs(sources: Iterable[Place], output: Place, overwrite: bool) -> None:
    """Raises UsageError for an output that cannot be written, or that is a source, and OutputExists."""
    for source in sources:
        if source.absolute() == output.absolute():
            raise UsageError(f"the output {output} is one of the archives that are read; choose another name")
        refuse_output(source, output, overwrite)


def copy_archive(plan: CopyPlan, output: Place, overwrite: bool) -> None:
    """Write the archive, or go on where an earlier run of the same was interrupted."""
    facts = plan.facts
    fingerprint = hashlib.sha256(json.dumps([FORMAT_VERSION, facts, plan.info.shards]).encode()).hexdigest()
    with open_staging(output, fingerprint, facts, overwrite) as staging:
        if not staging.is_published():
            if staging.assembled() is None:
                copy_shards(plan, staging, sorted(set(range(len(plan.shards))) - taken_over(plan, staging)))
            staging.publish(len(plan.shards), lambda used: info_of(plan.info, used))


def info_of(info: ArchiveInfo, used: Iterable[str]) -> ArchiveInfo:
    """The description with the models of those codecs alone that are used."""
    models = {codec: info.models[codec] for codec in sorted(used)}
    return replace(info, models=models, model_files={k: v for k, v in info.model_files.items() if k in models})


def taken_over(plan: CopyPlan, staging: Staging) -> set[int]:
    """Shards that an earlier run copied; what is not as it was written is copied again."""
    return {s for s in staging.committed() if s < len(plan.shards) and holds(staging.part(s), plan.info.shards[s])}


def holds(part: Place, rows: int) -> bool:
    try:
        with ArchiveReader.open(part) as opened:
            return opened.info.shards == (rows,) and opened.whole_sizes(0) is not None
    except ArchiveError:
        return False


def copy_shards(plan: CopyPlan, staging: Staging, shards: Sequence[int]) -> None:
    """Raises DamagedRow, naming archive and row, for what is not what was written."""
    threads = OrderedThreadPool(_THREADS)
    for shard, _ in zip(shards, threads.in_order(lambda s: _copy(plan, s, staging.part(s)), shards), strict=True):
        staging.require(shard)


def _copy(plan: CopyPlan, number: int, part: Place) -> None:
    shard = plan.shards[number]
    with committing(part) as new:
        if plan.is_verbatim(shard):
            plan.sources[shard[0].source].copy_shard(shard[0].shard, new, plan.info)
        else:
            write_part(new, sorted(_rows(plan, shard), key=lambda row: row.path), plan.info)


def _rows(plan: CopyPlan, shard: NewShard) -> Iterator[Row]:
    for piece in shard:
        folder = plan.folders[piece.source]
        for row in plan.sources[piece.source].sound_rows(piece.shard, piece.rows):
            yield replace(row, path=folder + row.path) if folder else row
