"""Restore an archive on a Ray cluster.

    ray job submit --working-dir . -- python jobs/restore.py /mnt/out /mnt/restored --format png

Arguments are those of `zippy-batch restore`; below them lies the preset `cluster`. Paths are those that
every machine of the cluster sees. Submit the same job again after an interruption: it takes the files that it finds
for its own, and writes them anew.

This is Ray's own way, which uploads the working directory. `zippy-batch submit` uploads nothing, wants zippy-batch
installed on the cluster, and checks versions and paths on every machine before it starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# a submitted working directory holds the package, but `python jobs/restore.py` looks for modules in jobs/
sys.path.insert(0, str(ROOT))

from zippy_batch.cli.app import app  # noqa: E402

if __name__ == "__main__":
    app(["restore", "--config", "cluster", *sys.argv[1:]], prog_name="zippy-batch")
