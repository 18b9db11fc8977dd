"""Writes archives: one Parquet file, or a directory of parts with a manifest."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zippy_batch.archives.description import Head, Moving, seal
from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, model_name
from zippy_batch.archives.part_file import File, PartWriter, foreign, open_file, open_part, require_one_shard
from zippy_batch.archives.schema import (
    BY_NAME,
    CODED,
    FORMAT_VERSION,
    GROUP_BYTES,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
    Row,
    Value,
    arrow_schema,
    fields_of,
    problem_of,
    row_crc,
)
from zippy_batch.errors import ArchiveError, UsageError
from zippy_batch.stores.atomic_file import replacing
from zippy_batch.stores.object_path import Place, reading

if TYPE_CHECKING:
    import pyarrow as pa

_COPY_BYTES = 1 << 23


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def write_part(path: Path, rows: Sequence[Row], info: ArchiveInfo) -> None:
    """Write one shard as a Parquet file: a part of an archive, and an archive of one shard by itself.

    The file is written under a name of its own beside `path`, flushed to disk and renamed, so that `path` is whole
    whenever it exists. `info.shards` and `info.model_files` are not used. Raises ValueError for a row no reader would
    accept.
    """
    import pyarrow as pa

    for place, row in enumerate(rows):
        problem = problem_of(row)
        if problem:
            raise ValueError(f"row {place} ({row.path!r}) cannot be stored: {problem}")
    fields = [fields_of(row) for row in rows]
    for one in fields:
        one["crc"] = row_crc(one)
    schema = arrow_schema()
    payload_bytes = {codec: sum(len(r.payload) for r in rows if r.codec == codec) for codec in CODED}
    here = replace(info, models={k: v for k, v in info.models.items() if any(r.codec == k for r in rows)})
    with _new_file(path) as sink:
        writer = PartWriter(sink)
        for group in _cut_groups(fields):
            columns = [_array(group, name, schema.field(name).type) for name in schema.names]
            writer.add_table(pa.table(columns, schema=schema))
        writer.finish(seal(_head(here, (len(rows),), (sum(payload_bytes.values()),), (payload_bytes["exact"],))))


def merge_parts(parts: Sequence[Path], output: Path, info: ArchiveInfo) -> None:
    """Join parts, in order, into a single file: their row groups as they are, with a new footer.

    Holds one row group in memory at a time. `output` appears whole or not at all. Raises ArchiveError for a part that
    is missing, damaged, or not what `info` says, and UsageError for more row groups than a file may have.
    """
    heads, groups = [], 0
    for part, rows in zip(parts, info.shards, strict=True):
        # opened again below: all footers at once are large
        file = open_part(part, rows)
        heads.append(file.head)
        groups += len(file.groups)
    if groups > MAX_GROUPS:
        raise UsageError(
            f"{output} would have {groups} row groups, and a single file holds at most {MAX_GROUPS}; "
            f"choose larger shards, or write a directory (an output that does not end in .parquet)"
        )
    with _new_file(output) as sink:
        writer = PartWriter(sink)
        for part, rows in zip(parts, info.shards, strict=True):
            _append_part(writer, part, rows)
        head = _head(info, info.shards, *_sums(heads))
        # between the last row group and the footer, where no reader of Parquet looks
        for codec, model in sorted(info.model_files.items()):
            head.setdefault("stored_models", {})[codec] = _model_facts(model) | {"offset": writer.add_model(model)}
        writer.finish(seal(head))


def copy_part(path: Path, file: File, groups: range, head: Head, info: ArchiveInfo) -> None:
    """Write one shard of another file as a part: its row groups as they are, with a new footer.

    `head` says what the shard has: its rows, payload bytes and models. `path` appears whole or not at all. Raises
    ArchiveError where a page is not what was written.
    """
    here = replace(info, models=head.models)
    with _new_file(path) as sink:
        writer = PartWriter(sink)
        _append_groups(writer, file, groups)
        writer.finish(seal(_head(here, head.shards, head.payload_bytes, head.exact_bytes)))


def _append_part(writer: PartWriter, part: Path, rows: int) -> None:
    """Raises ArchiveError where a page is not what was written."""
    file = open_part(part, rows)
    _append_groups(writer, file, range(len(file.groups)))


def _append_groups(writer: PartWriter, file: File, groups: range) -> None:
    with foreign(f"{file.path} is damaged"), reading(file.path, file.size_bytes, file.tail) as source:
        for group in map(file.groups.__getitem__, groups):
            source.seek(group.start)
            writer.add_group(group, memoryview(source.read(group.stored_bytes)))


def _model_facts(model: bytes) -> dict[str, int]:
    return {"bytes": len(model), "crc": zlib.crc32(model)}


def write_manifest(directory: Path, info: ArchiveInfo, known: Mapping[int, PartFacts] | None = None) -> None:
    """Complete a directory that holds the parts 0 to n-1 under their `part_name`: the models, then the manifest.

    Parts that are `known` are not read. Raises ArchiveError when a part is missing or not what `info` says.
    """
    known = known or {}
    facts = [known.get(shard) or part_facts(directory / part_name(shard)) for shard in range(len(info.shards))]
    text = manifest_text(info, facts)
    for codec, model in sorted(info.model_files.items()):
        with _new_file(directory / model_name(codec)) as sink:
            sink.write(model)
    with _new_file(directory / MANIFEST_NAME) as sink:
        sink.write(text)


@dataclass(frozen=True)
class PartFacts:
    """What a manifest says of a part."""

    name: str
    head: Head
    size_bytes: int
    sha256: str
    bounds: tuple[bytes, bytes] | None
    """The least and the greatest of its paths."""


def part_facts(path: Path) -> PartFacts:
    """Raises ArchiveError for what is no part."""
    if not path.is_file():
        raise ArchiveError(f"{path} is missing")
    file = open_file(path)
    return PartFacts(path.name, file.head, file.size_bytes, sha256_of(path), file.bounds())


def manifest_text(info: ArchiveInfo, parts: Sequence[PartFacts], moving: Moving | None = None) -> bytes:
    """Raises ArchiveError when a part is not what `info` says."""
    for part, rows in zip(parts, info.shards, strict=True):
        require_one_shard(part.name, part.head, rows)
    head = _head(info, info.shards, *_sums([part.head for part in parts]))
    head["parts"] = [_part_struct(part) for part in parts]
    if info.model_files:
        head["stored_models"] = {codec: _model_facts(model) for codec, model in info.model_files.items()}
    if moving is not None:
        head["moving"] = {"folder": moving.folder, "shards": sorted(moving.shards)}
    return seal(head).encode()


def _part_struct(part: PartFacts) -> dict[str, Any]:
    bounds = {"paths": [path.decode() for path in part.bounds]} if part.bounds else {}
    return {"name": part.name, "bytes": part.size_bytes, "sha256": part.sha256} | bounds


def _sums(heads: Sequence[Head]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """payload_bytes and exact_bytes of all shards."""
    return (
        tuple(size for head in heads for size in head.payload_bytes),
        tuple(size for head in heads for size in head.exact_bytes),
    )


def _head(
    info: ArchiveInfo, shards: tuple[int, ...], payload_bytes: tuple[int, ...], exact_bytes: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "models": dict(info.models),
        "options": dict(info.options),
        "shards": list(shards),
        "payload_bytes": list(payload_bytes),
        "exact_bytes": list(exact_bytes),
    }


@contextmanager
def _new_file(path: Path) -> Iterator[pa.NativeFile]:
    """A file that becomes `path`, whole and on disk, when the body is done."""
    import pyarrow as pa

    with replacing(path) as new, pa.OSFile(str(new), "wb") as sink:
        yield sink


def _cut_groups(fields: Sequence[dict[str, Value]]) -> Iterator[Sequence[dict[str, Value]]]:
    """Row groups: as many rows as fit MAX_ROWS_PER_GROUP and GROUP_BYTES."""
    start = held_bytes = 0
    for place, one in enumerate(fields):
        size_bytes = sum(len(value) for value in one.values() if isinstance(value, bytes))
        full = place - start == MAX_ROWS_PER_GROUP or held_bytes + size_bytes > GROUP_BYTES
        if full and place > start:
            yield fields[start:place]
            start, held_bytes = place, 0
        held_bytes += size_bytes
    if start < len(fields):
        yield fields[start:]


def _array(fields: Sequence[dict[str, Value]], name: str, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    values = [one[name] for one in fields]
    if BY_NAME[name].kind == "text":
        return pa.array(values, pa.binary()).cast(kind)
    return pa.array(values, kind)


def sha256_of(path: Place) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()
