"""Decoded pictures in a file, for the next time: shared by all processes that have it open."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zippy_batch.dataset import Pixels
from zippy_batch.stores.atomic_file import writing


class PictureCache:
    """Room for `count` pictures of one shape, in a file that is gone with whoever made it. Pictures of other shapes are
    not kept. Pickles: what is unpickled in another process shares the file.

    Raises WriteError where there is no room for all of them, and OSError where there is no such directory.
    """

    def __init__(self, directory: str | Path, count: int, shape: tuple[int, int, int]) -> None:
        self._count, self._shape = count, shape
        with writing(str(directory)):
            handle, self._path = tempfile.mkstemp(prefix="zippy-cache-", dir=directory)
            weakref.finalize(self, _remove, self._path, os.getpid())
            try:
                # what is reserved now is there when it is written to
                os.posix_fallocate(handle, 0, max(1, count * (1 + int(np.prod(shape)))))
            finally:
                os.close(handle)
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> tuple[int, tuple[int, int, int], str]:
        return self._count, self._shape, self._path

    def __setstate__(self, state: tuple[int, tuple[int, int, int], str]) -> None:
        self._count, self._shape, self._path = state
        self._arrays = None

    def get(self, places: Sequence[int]) -> dict[int, Pixels]:
        """Find those of the pictures that are there."""
        known, pictures = self._opened()
        return {place: pictures[place] for place in places if known[place]}

    def put(self, place: int, picture: Pixels) -> None:
        known, pictures = self._opened()
        if picture.shape == self._shape:
            pictures[place] = picture
            known[place] = 1

    def _opened(self) -> tuple[np.ndarray, np.ndarray]:
        if self._arrays is None:
            size = self._count * int(np.prod(self._shape))
            pictures = np.memmap(self._path, np.uint8, "r+", 0, (self._count, *self._shape))
            self._arrays = np.memmap(self._path, np.uint8, "r+", size, (self._count,)), pictures
        return self._arrays


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:
        Path(path).unlink(missing_ok=True)
