"""The curve of the README: PSNR over bytes, beside AVIF and WebP, from what compression.py measured.

    python benchmarks/compression.py FACES --limit 150 --qualities 25,40,60,75,90 --skip avif-speed0 --json FIGURES
    python benchmarks/rate_curve.py FIGURES docs/images/rate.svg

`benchmarks/rate.json` is what the first command wrote of CelebA's thumbnails, with a name in place of its directory.
Of a rival only the settings count that are the better ones at their quality. The picture has a white ground of its own,
so that it can be read on a dark page, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 44, 52
"""Margins, in pixels."""
LINES = {"zippy-batch": "#0a7a3d", "avif": "#b3470b", "webp": "#2857b8"}
"""Contender -> its colour; each has a contrast of at least 4.5 with white."""
TITLES = {"zippy-batch": "zippy-batch", "avif": "AVIF speed 6", "webp": "WebP"}
MOST_BYTES, STEP_BYTES = 700, 100
LEAST_DB, MOST_DB, STEP_DB = 20, 45, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what compression.py --json wrote; its first directory is drawn")
    parser.add_argument("output", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    options.output.write_text(drawn(json.loads(options.figures.read_text())[0]))


def drawn(found: Mapping[str, Any]) -> str:
    """One comparison as an SVG picture."""
    title = f"{found['images']} {found['source']}, {found['sizes']}: quality over bytes"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' role="img" font-family="sans-serif" font-size="13" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for size in range(0, MOST_BYTES + 1, STEP_BYTES):
        x = _x(size)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size}</text>')
    for decibels in range(LEAST_DB, MOST_DB + 1, STEP_DB):
        y = _y(decibels)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{decibels} dB</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">bytes per image, everything included</text>'
    )
    for name, colour in LINES.items():
        points = sorted(
            (_x(row["stored_bytes_per_image"]), _y(row["psnr_db"]))
            for row in found["rows"]
            if row["contender"] == name and row["better_by_psnr"] and row["stored_bytes_per_image"] <= MOST_BYTES
        )
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        # the highest curve has its name on the left, where no other one is
        place = f'x="{x - 10:.1f}" text-anchor="end"' if name == "zippy-batch" else f'x="{x + 10:.1f}"'
        parts.append(f'<text {place} y="{y + 4:.1f}" fill="{colour}" font-weight="bold">{TITLES[name]}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(size: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * size / MOST_BYTES


def _y(decibels: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (decibels - LEAST_DB) / (MOST_DB - LEAST_DB)


if __name__ == "__main__":
    main()
