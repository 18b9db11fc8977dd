"""Train a model on a Ray cluster.

    ray job submit --working-dir . -- python jobs/train.py /mnt/faces -o /mnt/models/mine.safetensors --workers 4

Arguments are those of `zippy-batch train`; below them lies the preset `train`. The sources and the directory
of the model are those that every machine of the cluster sees. Submit the same job again to go on after an interruption.

This is Ray's own way, which uploads the working directory. `zippy-batch submit` uploads nothing, wants zippy-batch
installed on the cluster, and checks versions and paths on every machine before it starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# a submitted working directory holds the package, but `python jobs/train.py` looks for modules in jobs/
sys.path.insert(0, str(ROOT))

from zippy_batch.cli.app import app  # noqa: E402

if __name__ == "__main__":
    app(["train", "--config", "train", *sys.argv[1:]], prog_name="zippy-batch")
