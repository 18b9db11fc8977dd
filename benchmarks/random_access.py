"""What one image of a large archive takes to read: by number, by path, in a batch of scattered ones.

    python benchmarks/random_access.py [ROWS]

Makes a single file of ROWS (1,000,000) 42x42 faces, whose payloads are those of a few drawn faces over and over, in a
temporary directory on this machine's disk. Reading is timed without decoding, and decoding apart.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from synthetic_faces import draw_faces

import zippy_batch as zb
from zippy_batch.archives.checksums import group_crcs
from zippy_batch.archives.description import seal
from zippy_batch.archives.part_file import PartWriter
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, MAX_ROWS_PER_GROUP, Row, arrow_schema, fields_of

FACES = 64


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "large.parquet"
        write(path, rows, Path(temporary))
        print(f"{rows} rows, {path.stat().st_size / rows:.1f} bytes a row, of which the index of rows "
              f"{index_bytes(path) / rows:.3f}")  # fmt: skip
        started = time.perf_counter()
        archive = zb.open(path, device="cpu")
        print(f"open: {1000 * (time.perf_counter() - started):.0f} ms")
        archive[0].pixels  # noqa: B018 - loads the model
        draw = random.Random(0)
        numbers = [draw.randrange(rows) for _ in range(400)]
        show("one file by number", numbers, lambda number: archive[number])
        show("the same again, after the others", numbers[-4:] * 20, lambda number: archive[number])
        show("the same 400 again", numbers, lambda number: archive[number])
        show("one file by path", numbers, lambda number: archive[f"{number:07d}.jpg"])
        show("one that is not there", numbers, lambda number: f"{number:07d}.png" in archive)
        show(
            "64 scattered files", numbers[:30], lambda number: archive[[draw.randrange(rows) for _ in range(64)]].read()
        )
        show("1,000 scattered", numbers[:3], lambda number: archive[[draw.randrange(rows) for _ in range(1000)]].read())
        file = archive[numbers[0]]
        show("decoding one", numbers[:50], lambda number: file.pixels)


def write(path: Path, rows: int, folder: Path) -> None:
    draw_faces(folder / "faces", FACES)
    report = zb.archive(folder / "faces", folder / "few.parquet", exact="never", workers=1)
    with ArchiveReader.open(folder / "few.parquet") as few:
        known = [fields_of(row) for row in few.read_rows(0) if isinstance(row, Row)]
    schema = arrow_schema()
    with path.open("wb") as sink:
        writer = PartWriter(sink)
        for start in range(0, rows, MAX_ROWS_PER_GROUP):
            count = min(MAX_ROWS_PER_GROUP, rows - start)
            columns = {
                name: pa.array([known[i % len(known)][name] for i in range(count)], pa.binary())
                if pa.types.is_string(schema.field(name).type)
                else pa.array([known[i % len(known)][name] for i in range(count)], schema.field(name).type)
                for name in schema.names
                if name != "crc"
            }
            columns["path"] = pa.array([f"{start + i:07d}.jpg".encode() for i in range(count)], pa.binary())
            chunked = {
                name: pa.chunked_array([column.cast(schema.field(name).type)]) for name, column in columns.items()
            }
            chunked["crc"] = pa.chunked_array([pa.array(group_crcs(chunked, count), pa.uint32())])
            writer.add_table(pa.table([chunked[name] for name in schema.names], schema=schema))
        head = {
            "format": FORMAT_VERSION,
            "models": dict(report.models),
            "options": {},
            "shards": [rows],
            "payload_bytes": [report.total.lossy_bytes * rows // FACES],
            "exact_bytes": [0],
        }
        writer.finish(seal(head))


def index_bytes(path: Path) -> int:
    from zippy_batch.archives.part_file import open_file

    return len(open_file(path).indexes)


def show(what: str, numbers: Sequence[int], read: Callable[[int], object]) -> None:
    seconds, cpu_seconds = [], []
    for number in numbers:
        started, cpu_started = time.perf_counter(), time.process_time()
        read(number)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    median, most = statistics.median(seconds), float(np.percentile(seconds, 95))
    cpu = statistics.median(cpu_seconds)
    print(f"{what}: {1000 * median:.2f} ms (median), {1000 * most:.2f} ms (95 %), {1000 * cpu:.2f} ms of a processor")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
