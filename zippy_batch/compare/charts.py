"""A comparison as pictures: curves of quality over bytes, and a contact sheet of faces. Both are PNG files, as bytes.

The plot needs matplotlib, which `pip install 'zippy-batch[compare]'` brings; the sheet needs Pillow alone.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zippy_batch.compare.codecs import LEPTON, TRANSCODE
from zippy_batch.compare.report import CONTENDERS, METRICS, OWN_EXACT, OWN_LOSSY, SOURCE, Comparison, Panel
from zippy_batch.errors import UsageError
from zippy_batch.images.metrics import mean_squared_error, psnr_db

_COLOURS = {
    SOURCE: "#555555",
    "mogrify": "#bcbd22",
    "jpeg": "#8c564b",
    "jpeg2000": "#9467bd",
    "webp": "#2ca02c",
    "jpeg-xl": "#e377c2",
    "avif": "#1f77b4",
    "avif-iq": "#aec7e8",
    "avif-speed0": "#17becf",
    TRANSCODE: "#e377c2",
    LEPTON: "#ff7f0e",
    OWN_LOSSY: "#d62728",
    OWN_EXACT: "#d62728",
}

CELL_PX = 168
"""Faces are enlarged by the whole number that brings their longer side nearest to this."""
CROP_PX = 256
"""Side of what is shown: the middle of larger images, pixel for pixel."""
_GAP_PX = 10
_MARGIN_PX = 16
_INK, _PALE, _OURS, _PAPER = (25, 25, 25), (110, 110, 110), (196, 30, 40), (255, 255, 255)


def require_matplotlib() -> None:
    """Raises UsageError that says what to install."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib; pip install 'zippy-batch[compare]'") from None


def plot(comparison: Comparison) -> bytes:
    """PSNR, SSIM and SSIMULACRA2 over stored bytes per image; what keeps files exactly is a vertical line.

    Raises UsageError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        _draw_curves(axes, comparison, metric)
        axes.set_ylabel(f"{label}, dB" if metric == "psnr_db" else label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{comparison.images} images, {comparison.sizes}, {comparison.source_bytes:.0f} B each as files")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_curves(axes: Any, comparison: Comparison, what: str) -> None:
    for name in CONTENDERS:
        rows, curve = [row for row in comparison.rows if row.contender == name], comparison.curve(name, what)
        if curve:
            sizes, values = [row.stored_bytes for row in curve], [getattr(row, what) or math.nan for row in curve]
            axes.plot(sizes, values, marker="o", markersize=4, color=_COLOURS[name], label=name, **_line(name))
        elif rows:
            label, dashes = f"{name} (no loss)", "--" if name == OWN_EXACT else ":"
            axes.axvline(rows[0].stored_bytes, linestyle=dashes, color=_COLOURS[name], label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(_round_sizes())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("bytes per image, everything stored")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(name: str) -> dict[str, Any]:
    if name == "mogrify":
        # it writes what libjpeg writes, and lies below that curve
        return {"linewidth": 5, "alpha": 0.5, "zorder": 1}
    return {"linewidth": 2.6, "zorder": 3} if name == OWN_LOSSY else {"linewidth": 1.3, "zorder": 2}


def _round_sizes() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5))


def sheet(comparison: Comparison) -> bytes:
    """The panels of a comparison side by side: a row for each face, a column for each contender.

    ValueError for a comparison that was made without `faces`.
    """
    panels = comparison.panels
    if not panels:
        raise ValueError("expected a comparison with panels; ask for some faces")
    cells = [[_enlarged(pixels) for pixels in panel.pixels] for panel in panels]
    heights = [max(cell.height for cell in row) for row in zip(*cells, strict=True)]
    head = _font(16)
    small = _font(13)
    widths = [
        max(round(head.getlength(panel.contender)), *(cell.width for cell in column))
        for panel, column in zip(panels, cells, strict=True)
    ]
    top, line, label = _MARGIN_PX + 68, 20, 22
    said = f"bytes and dB: over {comparison.images} images, everything stored; below each face: its own dB"
    width = max(sum(widths) + _GAP_PX * (len(widths) - 1), round(small.getlength(said))) + 2 * _MARGIN_PX
    out = Image.new("RGB", (width, top + sum(heights) + label * (len(heights) + 1) + _MARGIN_PX), _PAPER)
    draw = ImageDraw.Draw(out)
    left = _MARGIN_PX
    for panel, column, column_width in zip(panels, cells, widths, strict=True):
        draw.text((left, _MARGIN_PX), panel.contender, _OURS if panel.contender == OWN_LOSSY else _INK, head)
        quality = "" if panel.psnr_db is None else f", {panel.psnr_db:.1f} dB"
        draw.text((left, _MARGIN_PX + line), panel.setting or "as it is", _PALE, small)
        draw.text((left, _MARGIN_PX + 2 * line - 2), f"{panel.stored_bytes:.0f} B{quality}", _INK, small)
        y = top
        for i, (cell, height) in enumerate(zip(column, heights, strict=True)):
            out.paste(cell, (left, y))
            draw.text((left, y + height + 2), _own_psnr(panel, panels[0], i), _PALE, small)
            y += height + label
        left += column_width + _GAP_PX
    draw.text((_MARGIN_PX, out.height - _MARGIN_PX - label + 6), said, _PALE, small)
    data = io.BytesIO()
    out.save(data, "PNG", optimize=True)
    return data.getvalue()


def _own_psnr(panel: Panel, source: Panel, index: int) -> str:
    """PSNR of one face; its size in pixels under the source."""
    a, b = source.pixels[index], panel.pixels[index]
    if panel is source:
        return f"{a.shape[1]}x{a.shape[0]}"
    error = mean_squared_error(a, b)
    return f"{psnr_db(error):.1f} dB" if error else "exact"


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    height, width = pixels.shape[:2]
    top, left = max(0, (height - CROP_PX) // 2), max(0, (width - CROP_PX) // 2)
    image = Image.fromarray(np.ascontiguousarray(pixels[top : top + CROP_PX, left : left + CROP_PX]))
    factor = max(1, round(CELL_PX / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
