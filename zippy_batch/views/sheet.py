"""A contact sheet: pictures of an archive side by side, each with its path and its PSNR."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zippy_batch.dataset import ArchivedFile, ArchivedFiles
from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path, encoded_path
from zippy_batch.views.web_image import web_image

if TYPE_CHECKING:
    from PIL import Image

MOST_PICTURES = 2000
SMALLEST_SIDE, LARGEST_SIDE = 128, 256
"""Pixels of a picture's place on the sheet: the larger side of the largest one, within these."""
_GAP, _LINE, _FONT = 8, 13, 11
_PAPER, _INK, _PALE = "white", "#222222", "#888888"
_BATCH = 256


@dataclass(frozen=True)
class _Cell:
    picture: Image.Image | str
    """RGB, or why there is none."""
    caption: tuple[str, str]


def contact_sheet(files: ArchivedFiles, columns: int | None = None) -> Image.Image:
    """Pictures of the files in their order, row by row, RGB; `columns` of them side by side, by default about as many
    as makes a square. Pictures larger than 256 pixels are made smaller.

    Raises UsageError for no file or more than 2,000, and DamagedRow.
    """
    if not 1 <= len(files) <= MOST_PICTURES:
        raise UsageError(
            f"a sheet takes 1 to {MOST_PICTURES} pictures, not {len(files)}; choose with --where or --limit"
        )
    if columns is not None and columns < 1:
        raise UsageError(f"--columns is 1 or more, not {columns}")
    cells: list[_Cell] = []
    for batch in files.batches(_BATCH):
        read = batch.read()
        cells += [_cell(file, data) for file, data in zip(read, read.files(), strict=True)]
    return _drawn(cells, columns or math.ceil(math.sqrt(len(cells))))


def _cell(file: ArchivedFile, data: bytes) -> _Cell:
    from PIL import Image

    quality = file.codec if file.psnr is None else f"{file.psnr:.2f} dB"
    caption = display_path(encoded_path(file.path)), quality
    shown = web_image(data, LARGEST_SIDE, len(data))
    if isinstance(shown, str):
        return _Cell(shown, caption)
    with Image.open(io.BytesIO(shown.data)) as image:
        return _Cell(image.convert("RGB"), caption)


def _drawn(cells: Sequence[_Cell], columns: int) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    largest = max((max(cell.picture.size) for cell in cells if not isinstance(cell.picture, str)), default=0)
    side = min(max(largest, SMALLEST_SIDE), LARGEST_SIDE)
    width, height = side + _GAP, side + 2 * _LINE + _GAP
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for i, cell in enumerate(cells):
        x, y = _GAP + i % columns * width, _GAP + i // columns * height
        if isinstance(cell.picture, str):
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_PALE)
            draw.text((x + 4, y + 4), _fitted(cell.picture, side - 8, font), _PALE, font)
        else:
            # every pixel as a square: what small pictures lost is to be seen
            times = max(1, side // largest)
            w, h = cell.picture.width * times, cell.picture.height * times
            sheet.paste(cell.picture.resize((w, h), Image.Resampling.NEAREST), (x + (side - w) // 2, y + side - h))
        for line, (text, colour) in enumerate(zip(cell.caption, (_INK, _PALE), strict=True)):
            draw.text((x, y + side + 1 + line * _LINE), _fitted(text, side, font), colour, font)
    return sheet


def _fitted(text: str, width: int, font: object) -> str:
    """The end of the text, as much as fits: paths differ there."""
    from PIL import ImageFont

    assert isinstance(font, ImageFont.FreeTypeFont | ImageFont.ImageFont)
    # the font has no letters but these
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    if font.getlength(plain) <= width:
        return plain
    while plain and font.getlength(f"...{plain}") > width:
        plain = plain[1:]
    return f"...{plain}"
