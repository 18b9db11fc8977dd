"""Rows of an archive on their way back: read, cut into batches, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.codecs.model_file import Model, model_from_bytes
from zippy_batch.errors import ArchiveError, ModelError
from zippy_batch.images.pixels import Facts, write_picture
from zippy_batch.paths import display_path
from zippy_batch.run.encode_verified import (
    MODEL_LOST,
    Coders,
    LatentCoder,
    Pixels,
    StoredFile,
    decode_files,
    latent_item,
)
from zippy_batch.run.plan import BatchLimit, Key, cut_batches
from zippy_batch.run.report import Finding

EXACT_BATCH = BatchLimit(images=512, samples=1 << 20)
"""What the network takes of JPEG files at once; their payloads do not depend on their batch."""

Numbered = tuple[int, Row]
"""A row and its place in its shard."""


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard, by what can be had of them."""

    whole: list[Numbered]
    """Those that are what was written."""
    rest: list[Numbered]
    """What can be brought back of others; see `Damage.rest`."""
    damaged: tuple[Finding, ...]
    """What is wrong with the others, those of `rest` included."""


def read_shard(archive: ArchiveReader, shard: int, wanted: tuple[int, ...] | None, are_few: bool = False) -> ShardRows:
    """Rows of a shard; None for all. Where they are few, here and there, only the pages are read that they are in."""
    whole: list[Numbered] = []
    rest: list[Numbered] = []
    damaged: list[Finding] = []
    if lost := archive.lost(shard):
        return ShardRows(whole, rest, (Finding("(all of its rows)", lost, shard),))
    read = archive.read_few(shard, wanted) if are_few and wanted is not None else archive.read_rows(shard, wanted)
    for place, row in zip(_places(archive, shard, wanted), read, strict=True):
        if isinstance(row, Row):
            whole.append((place, row))
            continue
        name = "(its path is lost)" if row.path is None else display_path(row.path)
        damaged.append(Finding(name, row.reason, shard, place))
        if row.rest is not None:
            rest.append((place, row.rest))
    return ShardRows(whole, rest, tuple(damaged))


def _places(archive: ArchiveReader, shard: int, wanted: tuple[int, ...] | None) -> Sequence[int]:
    return range(archive.info.shards[shard]) if wanted is None else wanted


def sizes(rows: Iterable[Row]) -> tuple[int, int]:
    """Bytes of the sources and of the payloads."""
    found = [(row.source_bytes, len(row.payload)) for row in rows]
    return sum(source for source, _ in found), sum(stored for _, stored in found)


def row_batches(rows: Iterable[Numbered], batch_size: int) -> Iterator[list[Numbered]]:
    """Batches of one codec, and latent ones of one grid."""
    limits = {"latent": BatchLimit(batch_size), "exact": EXACT_BATCH, "raw": BatchLimit(batch_size)}
    return cut_batches(rows, _key, _samples, lambda key: limits[key[0]])


def _key(numbered: Numbered) -> Key:
    from zippy_batch.codecs.latent.codec import grid

    row = numbered[1]
    return ("latent", *grid(row.height or 0, row.width or 0)) if row.codec == "latent" else (row.codec, 0, 0)


def _samples(numbered: Numbered) -> int:
    row = numbered[1]
    pixels = (row.height or 0) * (row.width or 0)
    return {"raw": 0, "latent": pixels, "exact": pixels if row.grey else 3 * pixels}[row.codec]


def decode_pictures(batch: Sequence[Numbered], codec: LatentCoder | None) -> tuple[list[Pixels], dict[int, str]]:
    """Pixels of latent rows, and what is wrong by place in the batch."""
    if codec is None:
        return [], dict.fromkeys(range(len(batch)), MODEL_LOST)
    rows = [row for _, row in batch]
    items = [latent_item(row.payload, row.height or 0, row.width or 0, row.grey, row.quality or 0) for row in rows]
    return codec.decode_checked(items)


def restored_file(row: Row, pixels: Pixels, format: str = "jpeg", jpeg_quality: int | None = None) -> bytes | str:
    """A file of the pixels of a latent row, or why there can be none: a row whose checksum is right may still be
    malformed."""
    try:
        return write_picture(pixels, facts_of(row), format, jpeg_quality)
    except (ArchiveError, ValueError, OSError) as error:
        return f"it cannot be written as {format}: {error}"


def stored_files(batch: Sequence[Numbered], coders: Coders) -> list[bytes | str]:
    """Files of exact or raw rows, or what is wrong with them."""
    if batch[0][1].codec == "raw":
        return [row.payload for _, row in batch]
    return decode_files([_stored(row) for _, row in batch], coders.exact)


def _stored(row: Row) -> StoredFile:
    header, size = row.jpeg_header or b"", (row.height or 0, row.width or 0)
    return StoredFile(header, row.payload, *size, row.grey, row.source_bytes)


def is_verbatim(row: Row) -> bool:
    """Whether the row comes back as the very file that was archived."""
    return row.codec != "latent"


def facts_of(row: Row) -> Facts:
    """What a restored file needs besides the pixels."""
    return Facts(
        format=row.source_format or "",
        mode=row.mode or "RGB",
        width=row.width or 0,
        height=row.height or 0,
        jpeg_quality=row.jpeg_quality,
        jpeg_tables=row.jpeg_tables,
        exif=row.exif,
        icc=row.icc,
    )


def model_of(opened: ArchiveReader, codec: str, find: Callable[[str], Model | None]) -> Model:
    """The model that rows of a codec need: the archive's own, or what `find` gives for its id. Raises ModelError."""
    inside, wanted = opened.info.model_files.get(codec), opened.info.models[codec]
    model = find(wanted) if inside is None else model_from_bytes(inside)
    if model is None:
        raise ModelError(
            f"{opened.path} needs the model {wanted} for its {codec} rows, which is neither in it nor in this version; "
            f"install the version of zippy-batch that wrote it, or a newer one"
        )
    if model.codec != codec:
        raise ModelError(f"{opened.path} gives the model {wanted} to the {codec} codec, but it is of the {model.codec}")
    return model
