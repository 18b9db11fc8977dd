"""What a gallery shows of an archive: rows by condition and order, page by page, and their pictures on demand.

    rows(Search, start, count) -> facts of some rows     thumb(number), picture(number) -> WebImage

Threads may share it. Nothing is written, and what is kept in memory is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.dataset import Archive
from zippy_batch.errors import UsageError, ZippyError
from zippy_batch.views.listing import files_or_damage
from zippy_batch.views.markup import plain_text
from zippy_batch.views.web_image import WebImage, web_image

ORDERS = {
    "archive": "as in the archive",
    "worst": "lowest PSNR first",
    "best": "highest PSNR first",
    "ssim": "lowest SSIM first",
    "largest": "largest original first",
    "smallest": "smallest original first",
}
"""Orders of rows, and what they are called. Rows without the value come last."""
_KEYS = {
    "worst": ("psnr", 1.0),
    "best": ("psnr", -1.0),
    "ssim": ("ssim", 1.0),
    "largest": ("source_bytes", -1.0),
    "smallest": ("source_bytes", 1.0),
}
MOST_ROWS = 120
"""Of one page."""
_KEPT_SEARCHES = 8
_KEPT_PICTURES_BYTES = 1 << 26
_KEPT_NEIGHBOURS = 1 << 16
_BATCH, _BATCH_PIXELS = 24, 1 << 22
"""Pictures that are decoded together, and their pixels."""
_THUMB_SIDE, _THUMB_BYTES = 256, 60_000
_FULL_SIDE, _FULL_BYTES = 4096, 1 << 26


@dataclass(frozen=True)
class Search:
    """A choice of rows, and their order. Raises UsageError for an order that there is not."""

    where: str = ""
    order: str = "archive"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"there is no order {self.order!r}; there are {', '.join(ORDERS)}")


class Gallery:
    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._searching, self._decoding, self._keeping = Lock(), Lock(), Lock()
        self._found: OrderedDict[Search, NDArray[np.int64]] = OrderedDict()
        self._values: dict[str, NDArray[np.float64]] = {}
        self._beside: dict[int, tuple[int, ...]] = {}
        self._thumbs: OrderedDict[int, WebImage | str] = OrderedDict()
        self._thumb_bytes = 0

    def __len__(self) -> int:
        return len(self.archive)

    # ---- rows ----

    def rows(self, search: Search, start: int, count: int) -> dict[str, Any]:
        """Facts of `count` rows, at most MOST_ROWS, from the one at `start` on, and how many there are in all.

        Raises UsageError for a condition that is not understood, and ArchiveError where a column is damaged.
        """
        found = self._numbers(search)
        numbers = found[max(0, start) : max(0, start) + min(max(1, count), MOST_ROWS)].tolist()
        facts = self._facts(numbers)
        self._put_together(facts)
        return {"total": len(found), "start": start, "rows": facts}

    def _numbers(self, search: Search) -> NDArray[np.int64]:
        with self._searching:
            if search not in self._found:
                numbers = np.asarray(self.archive.rows(search.where or None).numbers, np.int64)
                if search.order in _KEYS:
                    column, sign = _KEYS[search.order]
                    numbers = numbers[np.argsort(sign * self._column(column)[numbers], kind="stable")]
                self._found[search] = numbers
                while len(self._found) > _KEPT_SEARCHES:
                    self._found.popitem(last=False)
            self._found.move_to_end(search)
            return self._found[search]

    def _column(self, name: str) -> NDArray[np.float64]:
        if name not in self._values:
            values = self.archive.rows().column(name)
            self._values[name] = np.fromiter((np.nan if v is None else v for v in values), np.float64, len(values))
        return self._values[name]

    def _facts(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        try:
            return [_facts_of(number, file.columns) for number, file in zip(numbers, self._read(numbers), strict=True)]
        except ZippyError:
            return [self._facts_or_damage(number) for number in numbers]

    def _read(self, numbers: Sequence[int]) -> Any:
        return self.archive[numbers].read() if numbers else ()

    def _facts_or_damage(self, number: int) -> dict[str, Any]:
        try:
            return _facts_of(number, self.archive[number].columns)
        except ZippyError as error:
            return {"number": number, "path": f"file {number}", "damage": plain_text(str(error))}

    def _put_together(self, facts: Sequence[dict[str, Any]]) -> None:
        """Rows that follow one another are wanted soon after one another: they are decoded together."""
        with self._keeping:
            if len(self._beside) > _KEPT_NEIGHBOURS:
                self._beside.clear()
            batch: list[int] = []
            pixels = 0
            for one in facts:
                size = (one.get("width") or 1) * (one.get("height") or 1)
                if batch and (len(batch) == _BATCH or pixels + size > _BATCH_PIXELS):
                    self._beside |= dict.fromkeys(batch, tuple(batch))
                    batch, pixels = [], 0
                batch.append(one["number"])
                pixels += size
            self._beside |= dict.fromkeys(batch, tuple(batch))

    # ---- pictures ----

    def thumb(self, number: int) -> WebImage | str:
        """A small picture; text says why there is none."""
        found = self._kept(number)
        if found is None:
            with self._decoding:
                found = self._kept(number)
                if found is None:
                    with self._keeping:
                        together = self._beside.get(number, (number,))
                        missing = [one for one in together if one not in self._thumbs]
                    made = self._decoded(missing)
                    found = made[number]
        return found

    def picture(self, number: int) -> WebImage | str:
        """The picture in full size; text says why there is none."""
        try:
            return web_image(self.archive[number].bytes(), _FULL_SIDE, _FULL_BYTES)
        except ZippyError as error:
            return plain_text(str(error))

    def _kept(self, number: int) -> WebImage | str | None:
        with self._keeping:
            if number in self._thumbs:
                self._thumbs.move_to_end(number)
            return self._thumbs.get(number)

    def _decoded(self, numbers: Sequence[int]) -> dict[int, WebImage | str]:
        files = files_or_damage(self.archive, numbers)
        made = {
            number: file if isinstance(file, str) else web_image(file, _THUMB_SIDE, _THUMB_BYTES)
            for number, file in zip(numbers, files, strict=True)
        }
        with self._keeping:
            for number, thumb in made.items():
                self._thumbs[number] = thumb
                self._thumb_bytes += _size_of(thumb)
            while self._thumb_bytes > _KEPT_PICTURES_BYTES:
                self._thumb_bytes -= _size_of(self._thumbs.popitem(last=False)[1])
        return made


def _size_of(thumb: WebImage | str) -> int:
    return 100 + len(thumb if isinstance(thumb, str) else thumb.data)


def _facts_of(number: int, columns: Any) -> dict[str, Any]:
    label, reason = columns["label"], columns["raw_reason"]
    stored = columns["payload"] if columns["raw"] is None else columns["raw"]
    shown = columns["path"] if columns["path_bytes"] is None else columns["path_bytes"].decode(errors="surrogateescape")
    return {
        "number": number,
        "path": plain_text(shown),
        "label": None if label is None else plain_text(label),
        "codec": "lossy" if columns["codec"] == "latent" else columns["codec"],
        "reason": None if reason is None else plain_text(reason),
        "stored_bytes": len(stored or b""),
        **{name: columns[name] for name in ("width", "height", "psnr", "ssim", "quality", "source_bytes")},
    }
