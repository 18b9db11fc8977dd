"""Pieces of HTML: text from an archive made harmless, histograms and bars as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.paths import display_path
from zippy_batch.run.report import count_text

_MOST_TEXT = 300
"""Characters that are shown of a path or a label; both may have tens of thousands."""
_BINS = 36
_WIDTH, _HEIGHT, _FOOT = 360, 130, 18
_LOG_SPAN = 40
"""Sizes whose largest is so many times the smallest are drawn over a logarithmic axis."""


def plain_text(value: str) -> str:
    """Text from an archive on one line, with control characters and those that turn text around as codes, and no longer
    than anybody reads."""
    shown = display_path(value.encode("utf-8", "surrogateescape"))
    if len(shown) > _MOST_TEXT:
        shown = f"{shown[: _MOST_TEXT // 2]} … {shown[-_MOST_TEXT // 2 :]}"
    return shown


def text_of(value: str) -> str:
    """The same for HTML and its attributes: escaped."""
    return html.escape(plain_text(value))


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table of cells that are HTML; the first `names` columns are text, the others numbers."""
    kinds = ["" if i < names else ' class="n"' for i in range(len(head))]
    heads = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def counts_of(head: str, counts: Mapping[str, int], most: int, noun: str = "file") -> str:
    """A table of what there is most of, with bars. Keys are plain text."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    total, largest = sum(counts.values()), ordered[0][1] if ordered else 1
    rows = [(text_of(key), f"{n:,}", share(n, total), _bar(n / largest)) for key, n in ordered[:most]]
    more = sum(n for _, n in ordered[most:])
    note = f"<p class='note'>and {len(ordered) - most:,} more with {count_text(more, noun)}</p>" if more else ""
    return table_of((head, f"{noun}s", "share", ""), rows) + note


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _bar(part: float) -> str:
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{max(1.0, 100 * part):.1f}" height="8"/></svg>'
    )


def histogram(title: str, values: NDArray[np.float64], shown: Callable[[float], str], note: str = "") -> str:
    """A figure of how values are spread, with their median and both ends in words. `shown` writes a value."""
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    least, median, most = (float(value) for value in np.percentile(values, (5, 50, 95)))
    words = f"median {shown(median)}, 5 % below {shown(least)}, 5 % above {shown(most)}"
    said = f"{title} of {count_text(len(values), 'file')}: from {shown(low)} to {shown(high)}, {words}"
    edges = _edges(low, high)
    counts, _ = np.histogram(values, edges)
    bars = _bars(counts, edges, shown)
    ends = _axis(edges, shown)
    more = f" {note}" if note else ""
    more += " The axis is logarithmic." if _is_logarithmic(low, high) else ""
    return (
        f'<figure class="chart"><h3>{html.escape(title)}</h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{html.escape(said)}">{bars}{ends}</svg>'
        f"<figcaption>{html.escape(words + '.' + more)}</figcaption></figure>"
    )


def _is_logarithmic(low: float, high: float) -> bool:
    return low > 0 and high / low > _LOG_SPAN


def _edges(low: float, high: float) -> NDArray[np.float64]:
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    if _is_logarithmic(low, high):
        edges = np.geomspace(low, high, _BINS + 1)
        edges[0], edges[-1] = low, high
        return edges
    return np.linspace(low, high, _BINS + 1)


def _bars(counts: NDArray[Any], edges: NDArray[np.float64], shown: Callable[[float], str]) -> str:
    step, tallest = _WIDTH / len(counts), max(1, int(counts.max()))
    out = []
    for i, count in enumerate(counts.tolist()):
        if count:
            height = max(1.5, _HEIGHT * count / tallest)
            span = f"{shown(edges[i])} to {shown(edges[i + 1])}" if len(counts) > 1 else shown(edges.mean())
            out.append(
                f'<rect x="{i * step + 0.5:.1f}" y="{_HEIGHT - height:.1f}" width="{step - 1:.1f}" '
                f'height="{height:.1f}"><title>{html.escape(span)}: {count_text(count, "file")}</title></rect>'
            )
    return "".join(out)


def _axis(edges: NDArray[np.float64], shown: Callable[[float], str]) -> str:
    line = f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>'
    if len(edges) == 2:
        return line + _tick(_WIDTH / 2, "middle", shown(edges.mean()))
    middle = edges[len(edges) // 2]
    marks = ((0.0, "start", edges[0]), (_WIDTH / 2, "middle", middle), (float(_WIDTH), "end", edges[-1]))
    return line + "".join(_tick(x, anchor, shown(value)) for x, anchor, value in marks)


def _tick(x: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{_HEIGHT + 14}" text-anchor="{anchor}">{html.escape(text)}</text>'


def number_text(digits: int, unit: str = "") -> Callable[[float], str]:
    """Writes numbers with so many digits after the point, and a unit."""
    return lambda value: f"{value:.{digits}f}{unit}" if math.isfinite(value) else "-"
