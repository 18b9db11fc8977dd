"""What it costs to change an archive: append 1 %, merge ten, erase one label; seconds, and bytes read and written.

    python benchmarks/living.py [--rows 100000]

Rows are made up: 200 bytes of payload each, 100 to a label, whose folder they are in. New files are no pictures, so
that append is measured and not the codec; the first one includes loading the codec. Each is done to a single file and
to a directory of parts of 4,096 rows, in a temporary directory. Bytes are those that pass through read and write calls,
cached or not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rows import face_rows, raw_row, write_archive

import zippy_batch as zb
from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.config import AppendOptions
from zippy_batch.run.append import append

SHARD_ROWS = 4096
LABEL_ROWS = 100
SOURCES = 10
INFO = ArchiveInfo(FORMAT_VERSION, {}, {"quality": 75}, ())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    print(f"{'':34}{'s':>8}{'read MB':>10}{'written MB':>12}{'archive MB':>12}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        made = [replace(raw_row(_path(i), row.payload), label=_label(i)) for i, row in enumerate(face_rows(rows))]
        new = _new_files(root / "new", max(1, rows // 100))
        sources = [
            write_archive(root / f"source-{i}.parquet", made[rows * i // SOURCES : rows * (i + 1) // SOURCES],
                          SHARD_ROWS, INFO)
            for i in range(SOURCES)
        ]  # fmt: skip
        for name in ("all.parquet", "all"):
            measure_form(root / name, made, new, sources)


def measure_form(archive: Path, rows: Sequence[Row], new: Path, sources: Sequence[Path]) -> None:
    form = "file" if archive.suffix else "directory"
    merged = archive.with_name(f"merged{archive.suffix}")
    measure(f"merge {SOURCES} x {len(rows) // SOURCES}, {form}", merged, lambda: zb.merge(sources, merged))
    write_archive(archive, rows, SHARD_ROWS, INFO)
    add = AppendOptions(device="cpu")
    one = zb.RunOptions(workers=1)
    measure(f"append 1 % to {len(rows)}, {form}", archive, lambda: append(new, archive, add, one))
    measure(f"append nothing, {form}", archive, lambda: append(new, archive, add, one))
    where = f"label == '{_label(len(rows) // 2)}'"
    measure(f"erase {LABEL_ROWS} of {len(rows)}, {form}", archive, lambda: zb.erase(archive, where))
    measure(f"diff, {form}", archive, lambda: zb.diff(archive, merged))
    assert zb.verify(archive).exit_code == 0


def measure(what: str, archive: Path, act: Callable[[], object]) -> None:
    before, started = _moved(), time.perf_counter()
    act()
    seconds = time.perf_counter() - started
    read, written = (after - earlier for after, earlier in zip(_moved(), before, strict=True))
    size = sum(p.stat().st_size for p in archive.iterdir()) if archive.is_dir() else archive.stat().st_size
    print(f"{what:34}{seconds:8.2f}{read / 1e6:10.1f}{written / 1e6:12.1f}{size / 1e6:12.1f}", flush=True)


def _moved() -> tuple[int, int]:
    """Bytes that this process has read and written so far."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"]), int(facts["wchar"])


def _path(row: int) -> bytes:
    return f"{_label(row)}/{row:07d}.bin".encode()


def _label(row: int) -> str:
    return f"id_{row // LABEL_ROWS:05d}"


def _new_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:06d}.bin").write_bytes(i.to_bytes(8, "little") * 25)
    return folder


if __name__ == "__main__":
    main()
