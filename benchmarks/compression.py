"""Bytes per image and quality of an archive, beside AVIF and WebP files stored the best way a user could store them.

    python benchmarks/compression.py DIRECTORY ... [--qualities 25,40,55,65,75,85,95] [--limit 200] [--skip avif-speed0]

Without a directory, faces of 42x42 are drawn. It is `zippy-batch compare` with AVIF's slowest setting and without the
verification of archives, whose columns for quality no rival has. The archive is charged for the whole Parquet file, and
holds no image exactly. The rivals are charged for a Parquet file too, with one row per image (path and encoded file):
the smallest that a careful user would write. It has no statistics and no dictionary, delta-coded paths, and one page
under zstd level 19, so that the header which all their files share costs them almost nothing. AVIF is tuned for PSNR,
and has the better of 4:2:0 and 4:4:4 at each quality.
Quality is the PSNR (dB, RGB) of the squared error pooled over all images, between the decoded source and what comes
back as PNG. "of X" is the archive's bytes divided by X's at the same PSNR, where X's curve is interpolated between its
settings (bytes on a logarithmic scale); below 1 the archive is smaller. The last lines are the means of that ratio over
the range of PSNR that both curves cover.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from zippy_batch.compare.curves import Point, ratio_at
from zippy_batch.compare.measure import QUALITIES, CompareOptions, compare
from zippy_batch.compare.report import METRICS, OWN_LOSSY, Comparison

RIVALS = ("avif", "avif-speed0", "webp")


def show(found: Comparison, names: Sequence[str]) -> None:
    rivals = {name: found.points(name) for name in names}
    print(f"{Path(found.source).name}: {found.images} images")
    print(f"  {'':16} {'bytes/image':>12} {'PSNR dB':>8}" + "".join(f" {'of ' + name:>15}" for name in names))
    for row in found.curve(OWN_LOSSY):
        cells = [ratio_at(Point(row.stored_bytes, row.psnr_db or 0.0), rivals[name]) for name in names]
        shown = "".join(f" {'-' if cell is None else f'{cell:.3f}':>15}" for cell in cells)
        print(f"  {f'quality {row.level}':16} {row.stored_bytes:12.1f} {row.psnr_db:8.2f}{shown}")
    for name in names:
        for row in found.curve(name):
            print(f"  {f'{name} {row.setting}':16} {row.stored_bytes:12.1f} {row.psnr_db:8.2f}")
    for metric, label in METRICS.items():
        for name, mean in found.equal(metric).items():
            digits = 3 if metric == "ssim" else 1
            between = f"{mean.low:.{digits}f} to {mean.high:.{digits}f}"
            print(f"  at equal {label}, mean of {name}: {mean.ratio:.3f} over {between}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    parser.add_argument("--qualities", default=QUALITIES, type=_numbers)
    parser.add_argument("--limit", type=int, default=0, help="images of each directory, spread over it; 0 takes all")
    parser.add_argument("--skip", action="append", default=[], choices=RIVALS, help="leave a rival out")
    parser.add_argument("--model", default="faces")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    names = [name for name in RIVALS if name not in options.skip]
    settings = CompareOptions(
        limit=options.limit, qualities=options.qualities, only=(*names, OWN_LOSSY), model=options.model, verify=False
    )
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        directories = options.directories
        if not directories:
            from synthetic_faces import draw_faces

            directories = [Path(folder) / "drawn-42x42"]
            draw_faces(directories[0], 200)
        for directory in directories:
            comparisons.append(compare(directory.resolve(), settings))
            show(comparisons[-1], names)
    if options.json:
        # by name: where a directory lies is nobody's business
        figures = [found.to_dict() | {"source": Path(found.source).name} for found in comparisons]
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
