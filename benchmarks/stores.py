"""Archive and restore through a store that speaks S3 on this machine, beside the same on its disk.

    python benchmarks/stores.py [--faces 669] [--shard-size 256] [--json FILE]

Faces are drawn, and the store is moto, in this process: it shares the cores, answers over the loopback and keeps
objects in memory. So the seconds are those of this program and of moto, without a network; a store far away takes some
tens of milliseconds more for each request, of which the table counts how many there are.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from synthetic_faces import draw_faces

from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.pipeline import archive, restore, stats, verify

BUCKET = "benchmark"


@dataclass(frozen=True)
class Measured:
    what: str
    seconds: float
    requests: int

    def line(self, shards: int) -> str:
        return f"{self.what:44} {self.seconds:8.2f} {self.requests:9} {self.requests / shards:11.1f}"


class Store:
    """A server, and how often it was asked."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer
        from werkzeug.serving import WSGIRequestHandler

        os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_EC2_METADATA_DISABLED="true")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.asked = 0

        def count(handler: WSGIRequestHandler, code: int | str = "-", size: int | str = "-") -> None:
            self.asked += 1

        patch.object(WSGIRequestHandler, "log_request", count).start()
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._host = "{}:{}".format(*self._server.get_host_and_port())
        import pyarrow.fs as pa_fs

        options = {"scheme": "http", "region": "us-east-1", "endpoint_override": self._host}
        pa_fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir(BUCKET)

    def uri(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}?scheme=http&region=us-east-1&endpoint_override={self._host}"

    def upload(self, directory: Path, name: str) -> None:
        import pyarrow.fs as pa_fs

        from zippy_batch.stores.object_path import ObjectPath, place

        target = place(self.uri(name))
        assert isinstance(target, ObjectPath)
        pa_fs.copy_files(str(directory), target.key, pa_fs.LocalFileSystem(), target.filesystem())

    def stop(self) -> None:
        self._server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=669)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    options = ArchiveOptions(shard_size=given.shard_size)
    alone = RunOptions(workers=1)
    store = Store()
    results: list[Measured] = []

    def measure(what: str, work: Callable[[], object]) -> None:
        before, begun = store.asked, time.perf_counter()
        work()
        results.append(Measured(what, time.perf_counter() - begun, store.asked - before))
        print(results[-1].line(shards), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_faces(work / "faces", given.faces)
        store.upload(work / "faces", "faces")
        # compiled and loaded before the clock runs
        shards = len(archive(work / "faces", work / "first.parquet", options, alone).shards)
        print(f"{given.faces} faces of 42x42 in {shards} shards, {len(os.sched_getaffinity(0))} cores")
        print(f"{'':44} {'seconds':>8} {'requests':>9} {'per shard':>11}")
        faces = work / "faces"
        for name in ("out.parquet", "out"):
            for where, path in (("disk", work / name), ("store", store.uri(name))):
                measure(f"archive, disk -> {where}, {name}", partial(archive, faces, path, options, alone))
                measure(f"stats, {where}, {name}", partial(stats, path))
                measure(f"verify, {where}, {name}", partial(verify, path, run=alone))
                back = work / f"back-{where}-{name}"
                measure(f"restore, {where} -> disk, {name}", partial(restore, path, back, run=alone))
        measure("archive, store -> store, out", partial(archive, store.uri("faces"), store.uri("o2"), options, alone))
    store.stop()
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
