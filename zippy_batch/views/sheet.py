"""A contact sheet: pictures of an archive side by side, each with its path and its PSNR."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zippy_batch.dataset import Archive, ArchivedFiles
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import OptionError, UsageError
from zippy_batch.paths import display_path, encoded_path
from zippy_batch.views.listing import Choice, chosen, files_or_damage
from zippy_batch.views.web_image import WebImage, original_image, web_image

if TYPE_CHECKING:
    from PIL import Image

MOST_PICTURES = 2000
SMALLEST_SIDE, LARGEST_SIDE = 128, 256
"""Pixels of a picture's place on the sheet: the larger side of the largest one, within these."""
_GAP, _LINE, _FONT = 8, 13, 11
_BESIDE = 2
"""Pixels between an original and what came back."""
_PAPER, _INK, _PALE = "white", "#222222", "#888888"
_BATCH = 256
_MOST_SAID = 400
_MOST_FILE_BYTES = 1 << 20
"""Larger originals are made smaller, as those of more pixels are."""


@dataclass(frozen=True)
class _Cell:
    pictures: tuple[Image.Image | str, ...]
    """RGB, or why there is none: what is restored, after its original where there is one to look for."""
    caption: tuple[str, str]


def sheet(
    files: str | Path | Archive | ArchivedFiles,
    worst: int | None = None,
    limit: int = 100,
    columns: int | None = None,
    against: str | Path | None = None,
) -> Image.Image:
    """Pictures of an archive on one sheet, RGB, each with its path and its PSNR: a `PIL.Image.Image`.

    files: an archive, or what its `rows` chooses of it. worst: so many of those with the least PSNR, the worst first;
    else the first `limit`. columns: pictures side by side, by default about as many as make a square. against: the
    directory of the originals, to show each beside what came back. Pictures larger than 256 pixels are made smaller,
    small ones larger; what cannot be had back has an empty frame that says why. Raises UsageError for no picture or
    more than 2,000, and what `open` raises.
    """
    if isinstance(files, str | Path):
        files = open_archive(files, keep_going=True)
    every = files.rows() if isinstance(files, Archive) else files
    if worst is None:
        numbers = every.numbers[: _checked("limit", limit)]
    else:
        numbers = chosen(every.archive, Choice(among=every.numbers, sort="psnr", limit=_checked("worst", worst)))
    return contact_sheet(every.archive[list(numbers)], columns, None if against is None else Path(against))


def _checked(name: str, count: int) -> int:
    if not 1 <= count <= MOST_PICTURES:
        raise OptionError(f"{{{name}}} is 1 to {MOST_PICTURES}, which a sheet takes, not {count}", name)
    return count


def contact_sheet(files: ArchivedFiles, columns: int | None = None, against: Path | None = None) -> Image.Image:
    """Draw these files in their order, as `sheet` does."""
    if not len(files):
        raise UsageError("there is no file to show: nothing is there that the condition holds for")
    if columns is not None and columns < 1:
        raise OptionError(f"{{columns}} is 1 or more, not {columns}", "columns")
    if against is not None and not against.is_dir():
        raise OptionError(f"{{against}} {against}: there is no such directory", "against")
    cells: list[_Cell] = []
    for first in range(0, len(files), _BATCH):
        cells += _cells(files.archive[list(files.numbers[first : first + _BATCH])], against)
    return _drawn(cells, columns or math.ceil(math.sqrt(len(cells))))


def _cells(batch: ArchivedFiles, against: Path | None) -> list[_Cell]:
    paths, quality, codecs = batch.paths, batch.column("psnr"), batch.column("codec")
    return [
        _Cell(
            _pictures(path, data, against),
            (display_path(encoded_path(path)), codec or "damaged" if psnr is None else f"{psnr:.2f} dB"),
        )
        for path, data, psnr, codec in zip(
            paths, files_or_damage(batch.archive, batch.numbers), quality, codecs, strict=True
        )
    ]


def _pictures(path: str, data: bytes | str, against: Path | None) -> tuple[Image.Image | str, ...]:
    shown = [data if isinstance(data, str) else web_image(data, LARGEST_SIDE, len(data))]
    if against is not None:
        shown.insert(0, original_image(against, path, LARGEST_SIDE, _MOST_FILE_BYTES))
    return tuple(map(_picture, shown))


def _picture(shown: WebImage | str) -> Image.Image | str:
    from PIL import Image

    if isinstance(shown, str):
        return shown
    with Image.open(io.BytesIO(shown.data)) as image:
        return image.convert("RGB")


def _drawn(cells: Sequence[_Cell], columns: int) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    every = [picture for cell in cells for picture in cell.pictures]
    largest = max((max(one.size) for one in every if not isinstance(one, str)), default=0)
    side = min(max(largest, SMALLEST_SIDE), LARGEST_SIDE)
    beside = len(cells[0].pictures)
    place = beside * side + (beside - 1) * _BESIDE
    width, height = place + _GAP, side + 2 * _LINE + _GAP
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for i, cell in enumerate(cells):
        left, y = _GAP + i % columns * width, _GAP + i // columns * height
        for n, picture in enumerate(cell.pictures):
            x = left + n * (side + _BESIDE)
            if isinstance(picture, str):
                draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_PALE)
                for line, words in enumerate(_lines(picture, side - 8, font)[: (side - 8) // _LINE]):
                    draw.text((x + 4, y + 4 + line * _LINE), words, _PALE, font)
            else:
                # every pixel as a square: what small pictures lost is to be seen
                times = max(1, side // largest)
                w, h = picture.width * times, picture.height * times
                enlarged = picture.resize((w, h), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (x + (side - w) // 2, y + side - h))
        for line, (text, colour) in enumerate(zip(cell.caption, (_INK, _PALE), strict=True)):
            draw.text((left, y + side + 1 + line * _LINE), _fitted(text, place, font), colour, font)
    return sheet


def _fitted(text: str, width: int, font: object) -> str:
    """The end of the text, as much as fits: paths differ there."""
    from PIL import ImageFont

    assert isinstance(font, ImageFont.FreeTypeFont | ImageFont.ImageFont)
    plain = _plain(text)
    if font.getlength(plain) <= width:
        return plain
    while plain and font.getlength(f"...{plain}") > width:
        plain = plain[1:]
    return f"...{plain}"


def _lines(text: str, width: int, font: object) -> list[str]:
    """The text in lines, broken between words, and in a word that is too long for a line."""
    from PIL import ImageFont

    assert isinstance(font, ImageFont.FreeTypeFont | ImageFont.ImageFont)
    lines, line = [], ""
    for word in re.findall(r" *[^ ]", _plain(text)[:_MOST_SAID]):
        if font.getlength(line + word) > width:
            head, _, tail = line.rpartition(" ") if not word.startswith(" ") else (line, "", "")
            lines.append(head or line)
            line = tail if head else ""
        line = line + word if line else word.lstrip()
    return [*lines, line]


def _plain(text: str) -> str:
    """The text with a question mark for letters that the font has not."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
