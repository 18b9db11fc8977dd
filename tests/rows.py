"""Made-up rows for tests and benchmarks of the archive."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row, stored_psnr, stored_ssim
from zippy_batch.archives.writer import merge_parts, part_name, write_manifest, write_part
from zippy_batch.stores.object_path import Place

MODEL = b"a model file, as far as an archive is concerned"
OPTIONS = {
    "batch_size": 64,
    "device": "cpu",
    "min_psnr": None,
    "model": "f" * 64,
    "quality": 75,
    "shard_size": 0,
    "strict": False,
    "verify": True,
}


def face_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows as those of 42x42 faces, with random payloads of about 200 bytes."""
    draw = random.Random(seed)
    return [
        Row(
            path=f"{i + 1:06d}.jpg".encode(),
            codec="latent",
            payload=draw.randbytes(max(60, int(draw.gauss(200, 40)))),
            raw_reason=None,
            width=42,
            height=42,
            mode="RGB",
            grey=False,
            quality=75,
            source_bytes=int(draw.gauss(925, 80)),
            source_format="jpeg",
            jpeg_quality=75,
            jpeg_tables=bytes(range(134)),
            psnr=stored_psnr(draw.gauss(28.5, 1.6)),
            ssim=stored_ssim(1 - draw.lognormvariate(-3, 0.35)),
            exif=None,
            icc=None,
            mtime_s=1_795_416_683,
        )
        for i in range(count)
    ]


def exact_row(path: bytes, payload: bytes, header: bytes) -> Row:
    base = face_rows(1)[0]
    return replace(
        base, path=path, codec="exact", payload=payload, jpeg_header=header,
        quality=None, psnr=None, ssim=None, jpeg_tables=None,
    )  # fmt: skip


def raw_row(path: bytes, data: bytes) -> Row:
    return Row(
        path=path,
        codec="raw",
        payload=data,
        raw_reason="not an image",
        width=None,
        height=None,
        mode=None,
        grey=False,
        quality=None,
        source_bytes=len(data),
        source_format=None,
        jpeg_quality=None,
        jpeg_tables=None,
        psnr=None,
        ssim=None,
        exif=None,
        icc=None,
        mtime_s=-3600,
    )


def mixed_rows(count: int, seed: int = 0) -> list[Row]:
    """All that can be in an archive: raw files, odd names, EXIF, profiles, grey pictures, nothing measured."""
    draw = random.Random(seed)
    rows = [replace(row, path=b"faces/" + row.path) for row in face_rows(count, seed)]
    for i in range(count):
        match i % 9:
            case 1:
                rows[i] = raw_row(rows[i].path + b".txt", draw.randbytes(draw.randrange(400)))
            case 2:
                rows[i] = replace(rows[i], exif=draw.randbytes(30), icc=b"profile" * 20)
            case 3:
                rows[i] = replace(rows[i], path=rows[i].path + b"\xff\xfe", psnr=None, ssim=None)
            case 4:
                rows[i] = replace(rows[i], mode="L", grey=True, width=4096, height=1, exif=b"")
            case 5:
                rows[i] = replace(rows[i], source_format="png", jpeg_quality=None, jpeg_tables=None)
            case 6:
                rows[i] = raw_row("faces/müde Gesichter/\n".encode() + rows[i].path, b"")
            case 7:
                rows[i] = replace(rows[i], payload=b"")
            case 8:
                rows[i] = exact_row(rows[i].path, draw.randbytes(410), b"a header of many files" * 10)
    return rows


MODELS = {"latent": "f" * 64, "exact": "e" * 64}


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Two in three with a label."""
    return [replace(row, label=f"id_{i % 7}" if i % 3 else None) for i, row in enumerate(rows)]


def info_for(*shards: int, model_files: Mapping[str, bytes] | None = None) -> ArchiveInfo:
    """Of an archive whose models are built in, or these files."""
    files = model_files or {}
    models = MODELS | {codec: hashlib.sha256(model).hexdigest() for codec, model in files.items()}
    return ArchiveInfo(FORMAT_VERSION, models, OPTIONS, shards, files)


def write_archive(path: Path, rows: Sequence[Row], shard_rows: int = 600, info: ArchiveInfo | None = None) -> Path:
    """An archive of these rows, in shards of so many."""
    shards = [rows[at : at + shard_rows] for at in range(0, len(rows), shard_rows)]
    info = replace(info or info_for(), shards=tuple(map(len, shards)))
    folder = path if path.suffix != ".parquet" else path.with_suffix(".parts")
    folder.mkdir()
    parts = [folder / part_name(i) for i in range(len(shards))]
    for part, some in zip(parts, shards, strict=True):
        write_part(part, some, info)
    if folder == path:
        write_manifest(folder, info)
    else:
        merge_parts(parts, path, info)
    return path


def rows_of(path: Place) -> list[Row]:
    with ArchiveReader.open(path) as opened:
        found = [row for shard in opened.shards() for row in opened.read_rows(shard)]
    assert all(isinstance(row, Row) for row in found)
    return [row for row in found if isinstance(row, Row)]


def below(folder: str, rows: Sequence[Row]) -> list[Row]:
    return [replace(row, path=folder.encode() + b"/" + row.path) for row in rows]
