"""Archives as data sets of PyTorch.

    ArchiveDataset      any file at any time: for samplers, and for data sets that are small or on a local disk
    StreamingArchive    one pass over row groups: for large archives, object stores, many workers and ranks

Both give (picture, label), or the picture alone. Pictures are uint8 tensors (3, H, W), or Pillow images in RGB, as the
file has them: an EXIF orientation is not applied. Files that are no pictures are left out, with a warning.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from zippy_batch.adapters.epoch_order import EpochOrder, Turn
from zippy_batch.adapters.picture_cache import PictureCache
from zippy_batch.adapters.pictures import classes_of, pictures_of
from zippy_batch.dataset import Archive, ArchivedFiles, Pixels
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import UsageError
from zippy_batch.run.row_decoder import images_together

__all__ = ["ArchiveDataset", "StreamingArchive"]

NO_LABEL = -1
"""Class number of a file without label."""


@dataclass(eq=False, repr=False)
class _Samples:
    """What both data sets have in common: which files, and what becomes of each."""

    archive: str | Path | Archive
    """A path or URI, or an archive that is open already, from `zippy_batch.open`."""
    _: KW_ONLY
    where: str | None = None
    """Condition on the columns, such as "psnr > 30": only these files."""
    transform: Callable[[Any], Any] | None = None
    """Called with each picture."""
    target_transform: Callable[[Any], Any] | None = None
    """Called with each label."""
    labels: Literal["number", "text"] | None = "number"
    """Labels as class numbers (-1 for a file without), as text ("" for a file without), or pictures without labels."""
    image: Literal["tensor", "pil"] = "tensor"
    """Pictures as uint8 tensors (3, H, W), or as images of Pillow."""
    device: str = "cpu"
    """Where a path's pictures are decoded: cpu, cuda or auto. Workers of a loader decode on the CPU alone."""

    def __post_init__(self) -> None:
        if self.labels not in ("number", "text", None):
            raise UsageError(f"labels are 'number', 'text' or None, not {self.labels!r}")
        if self.image not in ("tensor", "pil"):
            raise UsageError(f"image is 'tensor' or 'pil', not {self.image!r}")
        self._opened = self.archive if isinstance(self.archive, Archive) else open_archive(self.archive, self.device)
        self._numbers = pictures_of(self._opened, self.where)
        self.class_to_idx: Mapping[str, int] = {}
        """Number of each class. Classes are those of the whole archive, so that parts of it have the same numbers."""
        if self.labels == "number":
            self.class_to_idx = classes_of(self._opened.rows().labels)

    @property
    def classes(self) -> list[str]:
        """Labels by class number, in the order of their text."""
        return list(self.class_to_idx)

    def __repr__(self) -> str:
        return f"<zippy_batch.torch.{type(self).__name__}: {len(self._numbers)} of {self._opened!r}>"

    def _read(self, places: Sequence[int] | np.ndarray) -> ArchivedFiles:
        """Files by their places among those chosen, read."""
        return _for_worker(self._opened)[self._numbers[np.asarray(places, np.int64)].tolist()].read()

    def _items(self, pictures: Sequence[Pixels], labels: Sequence[str | None]) -> list[Any]:
        shown = [self._picture(pixels) for pixels in pictures]
        if self.labels is None:
            return shown
        return [(picture, self._label(label)) for picture, label in zip(shown, labels, strict=True)]

    def _picture(self, pixels: Pixels) -> Any:
        picture: Any
        if self.image == "pil":
            from PIL import Image

            picture = Image.fromarray(pixels)
        else:
            picture = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        return picture if self.transform is None else self.transform(picture)

    def _label(self, label: str | None) -> Any:
        target: Any = label or ""
        if self.labels == "number":
            target = NO_LABEL if label is None else self.class_to_idx[label]
        return target if self.target_transform is None else self.target_transform(target)


@dataclass(eq=False, repr=False)
class ArchiveDataset(_Samples, Dataset[Any]):
    """An archive as a data set with `len` and `[place]`, for `torch.utils.data.DataLoader`.

    A loader gets a batch at a time, which is read and decoded together. It pickles; a worker opens the archive itself.
    In memory are the numbers of the files, 8 bytes each, and for each process at most 128 MB of what is small of row
    groups, which is some 0.4 MB for each 4,096 files, beside the batch.

    Raises UsageError where there is no archive or the condition is not understood, ArchiveError for a damaged archive,
    and DamagedRow when a damaged file is asked for.
    """

    _: KW_ONLY
    cache: str | Path | None = None
    """A directory, such as /tmp or /dev/shm, for a file of decoded pictures: those of the most frequent size are
    decoded once, and the next epochs read them there, 3 bytes a pixel, from any worker. The file is gone with the data
    set, and WriteError is raised at once where there is no room for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._decoded: PictureCache | None = None
        self._labels: list[str | None] = []
        if self.cache is not None and len(self):
            rows = self._opened[self._numbers.tolist()]
            sizes = Counter(zip(rows.column("height"), rows.column("width"), strict=True))
            height, width = max(sizes, key=lambda size: (None not in size, sizes[size]))
            self._decoded = PictureCache(self.cache, len(self), (height or 1, width or 1, 3))
            self._labels = rows.labels

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> Any:
        """(picture, label), or the picture alone. Raises IndexError."""
        if not -len(self) <= place < len(self):
            raise IndexError(f"there is no picture {place}: there are {len(self)}")
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """Several at once, decoded together: what a loader calls."""
        if self._decoded is None:
            files = self._read(places)
            return self._items(files.rgb(), files.column("label"))
        wanted = [int(place) % len(self) for place in places]
        found = self._decoded.get(wanted)
        left = [place for place in dict.fromkeys(wanted) if place not in found]
        for place, pixels in zip(left, self._read(left).rgb() if left else [], strict=True):
            self._decoded.put(place, pixels)
            found[place] = pixels
        return self._items([found[place] for place in wanted], [self._labels[place] for place in wanted])

    @property
    def targets(self) -> list[int]:
        """Class number of each picture, -1 for one without label; reads the column of labels alone."""
        if self.labels != "number":
            raise UsageError("targets are class numbers: use labels='number'")
        labels = self._opened.rows().labels
        return [NO_LABEL if (one := labels[n]) is None else self.class_to_idx[one] for n in self._numbers]

    @property
    def paths(self) -> list[str]:
        """Path of each picture."""
        return self._opened[self._numbers.tolist()].paths


@dataclass(eq=False, repr=False)
class StreamingArchive(_Samples, IterableDataset[Any]):
    """An archive as a stream, an epoch at a time: `DataLoader(stream, batch_size=stream.batch_size, num_workers=...)`.

    Ranks share the row groups, and the rows of one where there are few: each has as many pictures. Workers of a rank
    take turns, a batch each, so that all of them have work, and the order is the same with any number of them, as long
    as the loader's batch size is this one's. Each worker reads the row groups of its rank, keeps the rows of its own
    turns, and decodes those.

    `shuffle` shuffles the row groups of the whole archive, and then the pictures of about `buffer` that follow. The
    order depends on seed, epoch and number of ranks alone. Call `set_epoch` before each epoch.

    In memory are the encoded rows of one window, at most `buffer` rows and 256 MB for all workers of a rank, and for
    each worker a row group while it is read, at most 64 MB, and 128 decoded pictures (on a
    GPU 512) or a batch.

    Raises what ArchiveDataset raises, a damaged file's error when its turn comes.
    """

    _: KW_ONLY
    batch_size: int = 64
    """That of the loader."""
    shuffle: bool = False
    seed: int = 0
    buffer: int = 1 << 14
    """Pictures that are shuffled together."""
    drop_last: bool = False
    """Whether ranks leave out the pictures that cannot be divided among them; otherwise a few are given twice."""
    rank: int | None = None
    world_size: int | None = None
    """Which part of how many; by default as torch.distributed or the environment (RANK, WORLD_SIZE) has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "buffer"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is 1 or more, not {getattr(self, name)}")
        self.rank, self.world_size = _ranks(self.rank, self.world_size)
        self._order = EpochOrder(
            groups=_groups(self._opened, self._numbers),
            count=len(self._numbers),
            shuffle=self.shuffle,
            seed=self.seed,
            buffer=self.buffer,
            ranks=(self.rank, self.world_size),
            drop_last=self.drop_last,
        )
        # seen by workers that live longer than an epoch: epoch, start, origin, and the workers that it was saved among
        self._shared = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._given = 0
        # what a worker was told to go on with, which the others must not see
        self._resumed: list[int] | None = None

    def __len__(self) -> int:
        """Pictures of an epoch, of this rank."""
        return self._order.length

    def set_epoch(self, epoch: int) -> None:
        """What is iterated next is this epoch, from its start, or from where `load_state_dict` said if that was in this
        epoch."""
        if epoch != self._shared[0]:
            self._shared.copy_(torch.tensor([epoch, 0, 0, 0]))

    def __iter__(self) -> Iterator[Any]:
        epoch, start, origin, saved_by = self._shared.tolist() if self._resumed is None else self._resumed
        self._resumed = None
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if saved_by not in (0, workers):
            raise UsageError(f"this state was saved by one of {saved_by} workers: go on with as many, not {workers}")
        self._given = start
        least = images_together("cpu" if info else self._opened._device)
        together = -(-least // self.batch_size) * self.batch_size
        for positions, places in self._order.turns(epoch, Turn(worker, workers, start, origin), self.batch_size):
            files = self._read(places)
            at = 0
            for some in files.batches(together):
                for item in self._items(some.rgb(), some.column("label")):
                    self._given = int(positions[at]) + 1
                    at += 1
                    yield item
        if info is None:
            self._shared[1:] = 0

    def state_dict(self, pictures: int | None = None) -> dict[str, int]:
        """State of the epoch, for `load_state_dict`; numbers alone, which JSON and torch.save take.

        `pictures` are those that this rank's loop has taken in this epoch: batches times batch size. It must be said
        where workers read ahead, unless the loader is torchdata's StatefulDataLoader, which asks the workers. Without
        it, it is what this process has given.
        """
        epoch, _, origin, _ = self._shared.tolist()
        info = get_worker_info()
        given = self._given if pictures is None else pictures
        saved_by = 0 if info is None else info.num_workers
        return {
            "epoch": epoch,
            "given": given,
            "origin": origin if saved_by else given,
            "workers": saved_by,
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state says, with any number of workers. Raises UsageError for a state of another stream."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UsageError(f"this state is of another stream: its {name} is {state.get(name)} instead of {value}")
        where = [state[name] for name in ("epoch", "given", "origin", "workers")]
        if get_worker_info() is None:
            self._shared.copy_(torch.tensor(where))
        else:
            self._resumed = where
        self._given = state["given"]

    def _identity(self) -> dict[str, int]:
        """What the order depends on besides the epoch."""
        return {
            "pictures": len(self._numbers),
            "shuffle": int(self.shuffle),
            "seed": self.seed,
            "buffer": self.buffer,
            "world_size": self._order.ranks[1],
        }


def _for_worker(archive: Archive) -> Archive:
    """The archive, to be decoded on the CPU inside of a loader's worker. Raises UsageError where that is not meant."""
    if get_worker_info() is None or archive._device == "cpu":
        return archive
    if archive._device == "cuda":
        raise UsageError("workers of a loader cannot share a GPU: decode with num_workers=0, or on device='cpu'")
    archive.close()
    archive._device = "cpu"
    return archive


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Raises UsageError where there is no such rank."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else int(os.environ.get("WORLD_SIZE", 1))
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", 0))
    if rank is None or not 0 <= rank < world_size:
        raise UsageError(f"there is no rank {rank} of {world_size}: give rank, from 0, and world_size")
    return rank, world_size


def _groups(archive: Archive, numbers: np.ndarray) -> np.ndarray:
    """(G, 2) row groups of which there are files: the first place among `numbers`, and the bytes of those."""
    found = np.array(archive._row_groups(), np.int64).reshape(-1, 2)
    places = np.searchsorted(numbers, found[:, 0])
    rows = np.diff(np.append(places, len(numbers)))
    every = np.diff(np.append(found[:, 0], len(archive)))
    sizes = found[:, 1] * rows // np.maximum(every, 1)
    return np.stack([places, sizes], axis=1)[rows > 0]
