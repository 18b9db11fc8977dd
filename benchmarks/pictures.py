"""Pictures of the codec: faces as they come back, which the README shows, and bytes against quality.

    python benchmarks/pictures.py docs/images [FACES ...]

Faces are drawn, so that the first picture shows no person. The curves are those of `zippy-batch compare` on the
directories that are named, one plot each, or on drawn faces.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from synthetic_faces import draw_faces

import zippy_batch as zb

SIDE = 112
"""Of a drawn face, in pixels."""
SHOWN = 6
ENLARGED = 2
MARGIN_PX = 12
LABEL_PX = 190
QUALITIES = (40, 75)
RIVALS = "jpeg,webp,jpeg-xl,avif"
"""More curves than these hide each other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory to write faces.png and rate-NAME.png to")
    parser.add_argument("faces", type=Path, nargs="*", help="directories of images for the curves")
    parser.add_argument("--limit", type=int, default=100, help="images of each directory")
    o = parser.parse_args()
    o.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        drawn = Path(work) / "faces"
        draw_faces(drawn, 60, SIDE)
        draw_sheet(drawn, Path(work), o.output / "faces.png")
        for faces in o.faces or [drawn]:
            draw_curves(faces, o.limit, o.output / f"rate-{faces.name}.png")


def draw_sheet(faces: Path, work: Path, output: Path) -> None:
    """A row of originals, and below it a row of what comes back at each setting."""
    names = sorted(path.name for path in faces.iterdir())[:SHOWN]
    rows = [("the files", _bytes_each(faces), [Image.open(faces / name) for name in names])]
    for label, options in [
        *((f"quality {q}", zb.ArchiveOptions(quality=q, exact="never")) for q in QUALITIES),
        ("--exact", zb.ArchiveOptions(exact="always")),
    ]:
        archive, restored = work / f"{label}.parquet", work / label
        report = zb.archive(faces, archive, options)
        zb.restore(archive, restored)
        size = report.total.archive_bytes / report.total.images
        rows.append((label, size, [Image.open(restored / name) for name in names]))
    cell = SIDE * ENLARGED
    sheet = Image.new(
        "RGB", (LABEL_PX + SHOWN * (cell + MARGIN_PX), len(rows) * (cell + MARGIN_PX) + MARGIN_PX), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(22)
    for y, (label, size, images) in enumerate(rows):
        top = MARGIN_PX + y * (cell + MARGIN_PX)
        draw.text((MARGIN_PX, top + cell // 2 - 30), label, (25, 25, 25), font)
        draw.text((MARGIN_PX, top + cell // 2), f"{size:.0f} B each", (110, 110, 110), font)
        for x, image in enumerate(images):
            enlarged = image.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (LABEL_PX + x * (cell + MARGIN_PX), top))
    sheet.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    print(output)


def _bytes_each(directory: Path) -> float:
    sizes = [path.stat().st_size for path in directory.iterdir()]
    return sum(sizes) / len(sizes)


def draw_curves(faces: Path, limit: int, output: Path) -> None:
    chosen = ["--limit", limit, "--only", f"{RIVALS},zippy-batch"]
    command = [sys.executable, "-m", "zippy_batch", "compare", faces, *chosen, "--plot", output, "--overwrite"]
    subprocess.run([*map(str, command)], check=True)
    print(output)


if __name__ == "__main__":
    main()
