"""Figures that `zippy-batch compare --json` wrote -> curves of quality over bytes, as inline SVG."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zippy_batch.errors import UsageError
from zippy_batch.run.report import count_text, size_text
from zippy_batch.views.markup import table_of, text_of

_METRICS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "ssimulacra2": "SSIMULACRA2"}
_OWN = "zippy-batch"
_COLOURS = 10
"""Classes k0 to k9 of the style sheet; k0 is this program's."""
_MOST_BYTES, _MOST_ROWS = 1 << 24, 2000
_WIDTH, _HEIGHT, _FOOT = 360, 220, 18

Point = tuple[float, float]
"""Bytes per image, quality."""
Curves = Mapping[str, Sequence[Point]]


def read_figures(path: Path) -> Mapping[str, Any]:
    """Raises UsageError for what `compare --json` has not written."""
    wrong = f"{path}: expected the figures that zippy-batch compare --json writes"
    if not path.is_file():
        raise UsageError(f"--compare {path}: there is no such file")
    if path.stat().st_size > _MOST_BYTES:
        raise UsageError(wrong)
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        rows = figures["rows"]
        for row in rows:
            contender, size = row["contender"], row["stored_bytes_per_image"]
            values = [row[metric] for metric in _METRICS if row[metric] is not None]
            if not (isinstance(contender, str) and 0 < size < math.inf and all(map(math.isfinite, values))):
                raise UsageError(wrong)
        if not (isinstance(figures["images"], int) and 0 < len(rows) <= _MOST_ROWS):
            raise UsageError(wrong)
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(wrong) from None
    found: Mapping[str, Any] = figures
    return found


def curves(figures: Mapping[str, Any]) -> str:
    """A chart for each measure of quality, and a table of what keeps files exactly."""
    rows = figures["rows"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    names.sort(key=lambda name: name != _OWN)
    charts = []
    for metric, title in _METRICS.items():
        points = {name: _points(rows, name, metric) for name in names}
        points = {name: some for name, some in points.items() if some}
        if points:
            charts.append(_chart(title, points, {name: i % _COLOURS for i, name in enumerate(names)}))
    exact = [row for row in rows if row.get("exact") is True]
    head = ("the very same files back", "bytes an image")
    table = table_of(
        head, [(text_of(row["contender"]), size_text(round(row["stored_bytes_per_image"]))) for row in exact]
    )
    said = f"<p>Measured by compare on {count_text(figures['images'], 'image')}: up and to the left is better.</p>"
    return f'{said}<div class="charts">{"".join(charts)}</div>{table if exact else ""}'


def _points(rows: Sequence[Mapping[str, Any]], name: str, metric: str) -> list[Point]:
    mine = [row for row in rows if row["contender"] == name and row[metric] is not None]
    mine = [row for row in mine if row.get("better_by_psnr", True)]
    return sorted((float(row["stored_bytes_per_image"]), float(row[metric])) for row in mine)


def _chart(title: str, points: Curves, colours: Mapping[str, int]) -> str:
    every = [point for some in points.values() for point in some]
    sizes, values = [math.log(size) for size, _ in every], [value for _, value in every]
    left, right, low, high = min(sizes), max(sizes), min(values), max(values)
    wide, tall = (right - left) or 1.0, (high - low) or 1.0

    def place(point: Point) -> str:
        x = 52 + (_WIDTH - 56) * (math.log(point[0]) - left) / wide
        y = _HEIGHT - 6 - (_HEIGHT - 24) * (point[1] - low) / tall
        return f"{x:.1f},{y:.1f}"

    lines, legend = [], []
    for name, some in points.items():
        colour, label = f"k{colours[name]}", text_of(name)
        places = [place(point) for point in some]
        lines.append(f'<polyline class="{colour}" points="{" ".join(places)}"/>')
        for at, (size, value) in zip(places, some, strict=True):
            x, y = at.split(",")
            shown = f"{label}: {size_text(round(size))}, {value:.4g}"
            lines.append(f'<circle class="{colour}" cx="{x}" cy="{y}" r="3"><title>{shown}</title></circle>')
        key = f'<svg viewBox="0 0 10 10" aria-hidden="true"><circle class="{colour}" cx="5" cy="5" r="5"/></svg>'
        legend.append(f"<li>{key}{label}</li>")
    ends = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'
        for x, y, anchor, text in (
            (52, _HEIGHT + 14, "start", size_text(round(math.exp(left)))),
            (_WIDTH, _HEIGHT + 14, "end", size_text(round(math.exp(right)))),
            (_WIDTH / 2 + 24, _HEIGHT + 14, "middle", "bytes an image, logarithmic"),
            (0, 11, "start", f"{high:.4g}"),
            (0, _HEIGHT - 4, "start", f"{low:.4g}"),
        )
    )
    said = f"{title} over bytes of {', '.join(points)}"
    return (
        f'<figure class="chart"><h3>{html.escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" '
        f'aria-label="{text_of(said)}"><line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>{"".join(lines)}{ends}'
        f'</svg><ul class="legend">{"".join(legend)}</ul></figure>'
    )
