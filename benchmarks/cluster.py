"""What a second machine gives, and what a shard costs: a cluster of Ray, and shards of several sizes.

    python benchmarks/cluster.py [--images 16384] [--nodes 1,2] [--shard-sizes 256,1024,4096] [--json FILE]

The machines are processes of Ray on this one, with a CPU each, above a head that does no work; so there is no network
between them, and there must be as many cores. Faces are drawn, 42x42, 2,000 of them linked as often as it takes.
"start" is a run of a few images for each worker: Ray's start, the model's and the coder's. It is taken off the seconds
of every other run, of which the images/s are. What a shard costs is the slope of those seconds over the number of
shards: handing it out, cutting its last batches short, committing its part, joining it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scale import DRAWN, linked
from synthetic_faces import draw_faces

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.run.executor import usable_cpus
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.run.report import RunFacts

FEW = 64


@dataclass(frozen=True)
class Run:
    nodes: int
    shard_size: int
    shards: int
    archive_s: float
    restore_s: float
    bytes_per_image: float


@contextmanager
def nodes(count: int) -> Iterator[str]:
    """Address of a cluster with so many machines of one CPU."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(count):
            cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def run(source: Path, folder: Path, address: str, count: int, shard_size: int) -> Run:
    options, on = ArchiveOptions(shard_size=shard_size, device="cpu"), RunOptions(address=address)
    out, back = folder / f"out-{count}-{shard_size}.parquet", folder / f"back-{count}-{shard_size}"
    archived = archive(source, out, options, on)
    restored = restore(out, back, RestoreOptions(device="cpu"), on)
    size = archived.total.archive_bytes / archived.total.images
    return Run(count, shard_size, len(archived.shards), _seconds(archived.run), _seconds(restored.run), size)


def _seconds(facts: RunFacts | None) -> float:
    assert facts is not None
    return facts.seconds


def cost_per_shard(runs: list[Run], start: Run) -> float:
    """Seconds of one worker."""
    slope, _ = np.polyfit([one.shards for one in runs], [one.archive_s - start.archive_s for one in runs], 1)
    return float(slope) * start.nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--nodes", default="1,2")
    parser.add_argument("--shard-sizes", default="256,1024,4096")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    counts, sizes = [int(n) for n in o.nodes.split(",")], [int(n) for n in o.shard_sizes.split(",")]
    if max(counts) > usable_cpus():
        sys.exit(f"this machine lends {usable_cpus()} cores, too few for {max(counts)} nodes")
    found: dict[str, Any] = {"start": [], "runs": [], "cost_per_shard_s": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_faces(folder / "drawn", DRAWN, size=42)
        linked(folder / "drawn", folder / "faces", o.images)
        print("  nodes shard size  shards  archive s  images/s  restore s  images/s  B/image")
        for count in counts:
            linked(folder / "drawn", folder / f"few-{count}", FEW * count)
            with nodes(count) as address:
                start = run(folder / f"few-{count}", folder, address, count, FEW)
                print(f"  {count:5d} {'start':>10} {start.shards:7d} {start.archive_s:10.1f} {start.restore_s:20.1f}")
                runs = []
                for size in sizes:
                    runs.append(run(folder / "faces", folder, address, count, size))
                    print(_line(runs[-1], start, o.images), flush=True)
            cost = cost_per_shard(runs, start)
            print(f"  a shard costs {1000 * cost:.0f} ms of a worker")
            found["start"].append(asdict(start))
            found["runs"] += map(asdict, runs)
            found["cost_per_shard_s"][count] = cost
    if o.json:
        o.json.write_text(json.dumps(found, indent=2) + "\n")


def _line(one: Run, start: Run, images: int) -> str:
    archive_s, restore_s = one.archive_s - start.archive_s, one.restore_s - start.restore_s
    return (
        f"  {one.nodes:5d} {one.shard_size:10d} {one.shards:7d} {archive_s:10.1f} {images / archive_s:9.0f} "
        f"{restore_s:10.1f} {images / restore_s:9.0f} {one.bytes_per_image:8.1f}"
    )


if __name__ == "__main__":
    main()
