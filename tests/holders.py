"""Files that hold files, written from their specifications for tests."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIME_S = 1_700_000_001

REC_MAGIC = struct.pack("<I", 0xCED7230A)


def member(name: str, size_bytes: int = 0, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size_bytes, TIME_S
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


def write_tar(path: Path, files: Mapping[str, bytes], others: Sequence[tarfile.TarInfo] = (), format: int = 2) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            tar.addfile(member(name, len(data)), io.BytesIO(data))
        for info in others:
            tar.addfile(info)
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2023, 11, 14, 22, 13, 20)), data, method)
    return path


def image_record(image: bytes, label: float | Sequence[float], id: int = 0) -> bytes:
    """Content of a record as mxnet.recordio.pack makes it."""
    if isinstance(label, Sequence):
        return struct.pack(f"<IfQQ{len(label)}f", len(label), 0, id, 0, *label) + image
    return struct.pack("<IfQQ", 0, label, id, 0) + image


def framed(content: bytes) -> bytes:
    """A record as dmlc's writer frames it: cut, and the magic left out, where the magic stands at a multiple of 4."""
    cuts = [at for at in range(0, len(content) - 3, 4) if content[at : at + 4] == REC_MAGIC]
    starts = [0, *(at + 4 for at in cuts)]
    parts = [content[start:stop] for start, stop in zip(starts, [*cuts, len(content)], strict=True)]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        REC_MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def write_rec(path: Path, contents: Sequence[bytes], index: bool = True) -> Path:
    offsets, data = [], b""
    for content in contents:
        offsets.append(len(data))
        data += framed(content)
    path.write_bytes(data)
    if index:
        path.with_suffix(".idx").write_text("".join(f"{i}\t{offset}\n" for i, offset in enumerate(offsets)))
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], rows_per_group: int = 3, **metadata: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path, row_group_size=rows_per_group)
    return path


def images_column(files: Mapping[str, bytes] | Sequence[tuple[str | None, bytes | None]]) -> Any:
    """struct<bytes, path>, as Hugging Face's Image feature is stored."""
    import pyarrow as pa

    pairs = files.items() if isinstance(files, Mapping) else files
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": path} for path, data in pairs], kind)
