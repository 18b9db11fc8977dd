"""Rows of an archive -> pixels, or the files that restore writes, in memory.

Rows come from a reader (`dataset`), or from a table that somebody else read (`adapters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippy_batch.archives.schema import Row
from zippy_batch.codecs.model_file import Model, builtin_model_by_id, builtin_names, load_model
from zippy_batch.errors import ArchiveError, DamagedRow, ModelError
from zippy_batch.images.probe import CODING, CORRUPT, EMPTY, NOT_AN_IMAGE, TRUNCATED
from zippy_batch.paths import decoded_path
from zippy_batch.run.encode_verified import Coders, build_codec
from zippy_batch.run.executor import settle_device
from zippy_batch.run.rows import decode_pictures, is_verbatim, restored_file, row_batches, stored_files

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB or (H, W) grey."""


NO_PICTURE = frozenset({EMPTY, NOT_AN_IMAGE, CORRUPT, TRUNCATED, CODING})
"""Reasons for which a row is raw and nobody can see what it shows."""


_FEW = 4
"""Images that are decoded before it is found out which arithmetic is faster here."""


def images_together(device: str) -> int:
    """Images per pass through the networks: a GPU would idle with few."""
    return 128 if device == "cpu" else 512


class RowDecoder:
    """Decodes rows in batches of one codec and size; loads a codec when a row first needs it. Threads may share it."""

    def __init__(self, name: str, model_for: Callable[[str], Model], device: str) -> None:
        """name: of the archive, for messages. model_for: the model of a codec."""
        self._name, self._model_for, self._device = name, model_for, device
        self._lock = Lock()
        self._coders: dict[str, Any] = {}
        self._images = 0
        self._for_few = False

    @classmethod
    def builtin(cls, device: str) -> RowDecoder:
        """Decodes with the built-in models; ModelError where there is not one for a row's codec."""
        return cls("with the built-in models (where it has others, say archive=)", _builtin_model, device)

    def pixels(self, rows: Sequence[Row]) -> list[Pixels]:
        """(H, W, 3) RGB or (H, W) grey, as stored. Raises DamagedRow, and ArchiveError for a file without pixels."""
        return self._restored(rows, as_pixels=True)

    def files(self, rows: Sequence[Row]) -> list[bytes]:
        """What restore writes. Raises DamagedRow."""
        return self._restored(rows, as_pixels=False)

    def rgb(self, rows: Sequence[Row]) -> list[Pixels]:
        """(H, W, 3), grey pictures too, and raw files that only Pillow converts. Raises as `pixels`."""
        coded = [at for at, row in enumerate(rows) if row.codec != "raw"]
        found = dict(zip(coded, self.pixels([rows[at] for at in coded]), strict=True))
        return [_in_colour(found[at]) if at in found else _converted(row) for at, row in enumerate(rows)]

    def _coders_for(self, codecs: set[str], images: int) -> Coders:
        with self._lock:
            self._images += images
            if self._for_few and self._images > _FEW:
                # there is more to decode than it seemed at first
                self._coders.pop("latent", None)
            self._for_few = self._images <= _FEW
            for codec in sorted(codecs - self._coders.keys()):
                device = settle_device(self._device, None)
                few = self._for_few and device == "cpu"
                self._coders[codec] = build_codec(self._model_for(codec), device, few=few)
            return Coders(**self._coders)

    def _restored(self, rows: Sequence[Row], as_pixels: bool) -> list[Any]:
        if all(row.codec == "raw" for row in rows):
            return self._decoded(rows, as_pixels)
        with _one_thread():
            return self._decoded(rows, as_pixels)

    def _decoded(self, rows: Sequence[Row], as_pixels: bool) -> list[Any]:
        coders = self._coders_for({row.codec for row in rows if row.codec != "raw"}, len(rows))
        found: dict[int, Any] = {}
        keyed = sorted(enumerate(rows), key=lambda one: (one[1].codec, one[1].height or 0, one[1].width or 0))
        for batch in row_batches(keyed, images_together(self._device)):
            restore = _files_of if is_verbatim(batch[0][1]) else _pictures_of
            for (at, row), one in zip(batch, restore(batch, coders, as_pixels), strict=True):
                if isinstance(one, str):
                    raise DamagedRow(f"{self._name}: {decoded_path(row.path)}: {one}")
                found[at] = one
        return [found[at] for at in range(len(rows))]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The networks run on one thread: more of them take as many more processors, and no less time."""
    import torch

    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pictures_of(batch: Sequence[tuple[int, Row]], coders: Coders, as_pixels: bool) -> list[Any]:
    """Latent rows -> pixels, or JPEG files of them; text where one is damaged."""
    pictures, damage = decode_pictures(batch, coders.latent)
    found: list[Any] = []
    for at, (_, row) in enumerate(batch):
        picture: Any = damage[at] if at in damage else pictures[at]
        if not as_pixels and not isinstance(picture, str):
            picture = restored_file(row, picture)
        found.append(picture)
    return found


def _files_of(batch: Sequence[tuple[int, Row]], coders: Coders, as_pixels: bool) -> list[Any]:
    """Exact and raw rows -> files, or their pixels; text where one is damaged."""
    files = stored_files(batch, coders)
    if not as_pixels:
        return [*files]
    pairs = zip(batch, files, strict=True)
    return [file if isinstance(file, str) else _pixels_of(row, file) for (_, row), file in pairs]


def _in_colour(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _converted(row: Row) -> Pixels:
    """Pixels of a raw row, in colour. Raises ArchiveError for what is no picture."""
    from zippy_batch.images.pixels import read_in_colour

    found = read_in_colour(row.payload)
    if isinstance(found, str):
        raise ArchiveError(
            f"{decoded_path(row.path)} was kept as it is ({row.raw_reason}) and is no picture: {found}; take its "
            f"bytes(), or leave such files out with where=\"codec != 'raw'\""
        )
    return found


def _pixels_of(row: Row, file: bytes) -> Pixels | str:
    """Raises ArchiveError for a raw file that is no picture which could be coded."""
    from zippy_batch.images.pixels import Picture, decode_written, read_picture

    if row.codec == "exact":
        try:
            return decode_written(file, row.grey)
        except (OSError, ValueError) as error:
            return f"its file does not decode: {error}"
    picture = read_picture(file)
    if isinstance(picture, Picture):
        return picture.pixels
    raise ArchiveError(
        f"{decoded_path(row.path)} was kept as it is ({row.raw_reason}) and has no pixels here; take its bytes(), or "
        f"leave such files out with where=\"codec != 'raw'\""
    )


def require_builtin(models: Mapping[str, str]) -> None:
    """Raises ModelError where rows need a model (id by codec) that is not built in."""
    for codec, model in models.items():
        if builtin_model_by_id(model) is None:
            raise ModelError(
                f"the table needs the model {model} for its {codec} rows, which is not built in: say archive=, the "
                f"archive that the rows are of"
            )


def _builtin_model(codec: str) -> Model:
    found = [model for model in map(load_model, builtin_names()) if model.codec == codec]
    if len(found) != 1:
        raise ModelError(f"{len(found)} models of the {codec} codec are built in: say archive=, whose model it is")
    return found[0]
