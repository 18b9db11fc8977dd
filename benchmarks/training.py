"""What training gives by the minute: a model from nothing, or one adapted to a directory.

    python benchmarks/training.py DIRECTORY [--codec latent|exact] [--from NAME|FILE] [--minutes 10] [--sizes own]
                                  [--keep FILE.safetensors] [--json FILE]

Trains as `zippy-batch train` does and prints where it stood at every look at the held-out images (a tenth of the
directory, 128 at most), then what the model saves on them against the one that it started from, or the built-in one.
--keep writes the model, for `compression.py --model` or `exact.py` to judge on images that are not of the directory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from zippy_batch.config import RunOptions, TrainOptions
from zippy_batch.training.session import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--codec", default="latent", choices=("latent", "exact"))
    parser.add_argument("--from", dest="start", metavar="NAME|FILE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--sizes", default="own")
    parser.add_argument("--keep", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    options = TrainOptions(o.codec, o.start, o.minutes, o.sizes, device="cpu")
    lines: list[str] = []

    def watch(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "trained.safetensors"
        report = train([o.directory], output, options, RunOptions(workers=1), watch)
        print(*report.lines(), sep="\n")
        if o.keep:
            o.keep.write_bytes(output.read_bytes())
    if o.json:
        o.json.write_text(json.dumps({"lines": lines, **report.to_dict()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
