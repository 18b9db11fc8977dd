"""All tables of the README and the docs, measured again, one after another.

    python benchmarks/figures.py OUT THUMBNAILS LARGER ... [--only exact,compression] [--limit 60]

THUMBNAILS and LARGER are directories of JPEG files. What takes thumbnails alone gets the first; `exact` and
`throughput` get all of them, `compression` all of the first and `--limit` of each other. Each script's output is
OUT/NAME.txt and, where it keeps one, its JSON OUT/NAME.json; OUT/NAME.md has the rows of the README's table. A table
that is in OUT is not measured again. Close other programs first: what shares the cores shares the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippy_batch.compare.curves import Point, ratio_at

HERE = Path(__file__).parent
SHOWN_QUALITIES = (40, 75)
RIVALS = ("avif", "avif-speed0", "webp")


@dataclass(frozen=True)
class Table:
    where: str
    script: str
    arguments: Callable[[Sequence[Path], int], Sequence[object]]
    """From the directories, the thumbnails first, and the limit."""
    rows: Callable[[Any], list[str]] | None = None
    """In Markdown, from the script's JSON."""
    keeps_json: bool = True


def exact_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    sizes = [one for one in found if "zippy" in one]
    speeds = {one["directory"]: one for one in found if "archive_images_per_s" in one}
    head = (
        "JPEG files",
        "as they are",
        "Parquet",
        "one xz of all",
        "JPEG XL",
        "Lepton",
        "`--exact`",
        "archive",
        "restore",
    )
    out = [_row(head), _row(["---"] * len(head))]
    for one in sizes:
        sizes_of_rivals = [one[name] for name in ("source", "parquet", "xz", "jpeg_xl", "lepton")]
        cells = [f"{one['files']} of {one['directory']}, {one['size']}", *map(_bytes, sizes_of_rivals)]
        cells.append(f"**{one['zippy']:.0f}** ({one['zippy'] / one['source']:.2f})")
        speed = speeds.get(one["directory"])
        for way in ("archive", "restore"):
            cells.append(f"{speed[f'{way}_images_per_s']:.0f}/s, {speed[f'{way}_mb_per_s']:.2f} MB/s" if speed else "-")
        out.append(_row(cells))
    return out


def compression_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("images", "quality", "bytes per image", "PSNR dB", "of AVIF speed 6", "of AVIF speed 0", "of WebP")
    out = [_row(head), _row(["---"] * len(head))]
    for one in found:
        mine = [row for row in one["rows"] if row["contender"] == "zippy-batch" and row["level"] in SHOWN_QUALITIES]
        for row in mine:
            point = Point(row["stored_bytes_per_image"], row["psnr_db"])
            ratios = [ratio_at(point, _curve(one, name)) for name in RIVALS]
            name = f"{one['images']} of {Path(one['source']).name}, {one['sizes']}" if row is mine[0] else ""
            said = ["-" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
            out.append(_row([name, str(row["level"]), _bytes(point.bytes_per_image), f"{point.quality:.1f}", *said]))
        for metric in ("psnr", "ssim", "ssimulacra2"):
            means = [one[f"equal_{metric}"].get(name) for name in RIVALS]
            said = [f"{mean['ratio']:.3f}" if mean else "-" for mean in means]
            out.append(_row(["", f"mean at equal {metric.upper()}", "", "", *said]))
    return out


def _curve(comparison: Mapping[str, Any], name: str) -> list[Point]:
    rows = [row for row in comparison["rows"] if row["contender"] == name and row["better_by_psnr"]]
    return [Point(row["stored_bytes_per_image"], row["psnr_db"]) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


TABLES = {
    "exact": Table("README", "exact.py", lambda folders, limit: [*folders], exact_rows),
    "compression": Table("README", "compression.py", lambda folders, limit: folders[:1], compression_rows),
    "compression-larger": Table(
        "README", "compression.py", lambda folders, limit: [*folders[1:], "--limit", limit], compression_rows
    ),
    "throughput": Table("README", "throughput.py", lambda folders, limit: [*folders]),
    "startup": Table("README", "startup.py", lambda folders, limit: folders[:1]),
    "entropy": Table("README", "entropy.py", lambda folders, limit: folders[:1], keeps_json=False),
    "archive-overhead": Table("README", "archive_overhead.py", lambda folders, limit: []),
    "starting-point": Table(
        "README, benchmarks/README.md", "starting_point.py", lambda folders, limit: [folders[0], "--small"]
    ),
    "stores": Table("docs/object-stores.md", "stores.py", lambda folders, limit: []),
    "scale": Table("docs/operations.md", "scale.py", lambda folders, limit: []),
    "cluster": Table("docs/operations.md", "cluster.py", lambda folders, limit: []),
}
"""By name, in the order in which they are measured; not those of `training.py` and `ablations.py`, which take hours."""


def measure(name: str, folders: Sequence[Path], limit: int, out: Path) -> bool:
    """Whether it could be measured; what it printed stands in OUT/NAME.txt only if so."""
    table, text = TABLES[name], out / f"{name}.txt"
    arguments = table.arguments(folders, limit)
    keep = ["--json", out / f"{name}.json"] if table.keeps_json else []
    done = subprocess.run(
        [sys.executable, HERE / table.script, *map(str, [*arguments, *keep])],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        return False
    if table.rows:
        rows = table.rows(json.loads((out / f"{name}.json").read_text()))
        (out / f"{name}.md").write_text("\n".join(rows) + "\n")
        print("\n".join(rows), flush=True)
    text.write_text(done.stdout)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIRECTORY")
    parser.add_argument("--only", default=",".join(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--limit", type=int, default=60, help="larger images of each directory, for compression")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        parser.error(f"there is no table {unknown[0]}; there is {', '.join(TABLES)}")
    folders = [folder.resolve() for folder in options.folders]
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        if name == "compression-larger" and len(folders) < 2:
            continue
        print(f"{name} ({TABLES[name].where})", flush=True)
        if not (options.out / f"{name}.txt").exists() and not measure(name, folders, options.limit, options.out):
            failed.append(name)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
