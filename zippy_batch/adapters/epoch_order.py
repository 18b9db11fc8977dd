"""The order in which an epoch goes through an archive, and whose turn each file is. Knows no files, only numbers.

    row groups -> shuffled -> cut into one equal span for each rank -> windows of a few groups -> shuffled within each

What a rank sees is a function of the seed, the epoch and the number of ranks. Workers take turns, a batch each: a
loader that asks them in turn gets the same order from any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]

WINDOW_BYTES = 1 << 28
"""Bytes of the row groups that a window is made of; only a single row group may have more, or what of it is taken."""


@dataclass(frozen=True)
class Turn:
    """Says which of a rank's files are a worker's: of batches that are counted from file `origin` on, every
    `workers`-th, beginning with number `worker`; none before file `start`."""

    worker: int = 0
    workers: int = 1
    start: int = 0
    origin: int = 0


@dataclass(frozen=True)
class EpochOrder:
    """Orders of the places 0 to N."""

    groups: Places
    """(G, 2): the first place of each row group, ascending, and its bytes in memory; the first is 0."""
    count: int
    """N, places in all."""
    shuffle: bool
    seed: int
    buffer: int
    """Most places that are shuffled together."""
    ranks: tuple[int, int]
    """Number of this rank, and how many there are."""
    drop_last: bool
    """Whether ranks leave out what cannot be divided among them; otherwise some of them repeat a few places."""

    @property
    def length(self) -> int:
        """Places of a rank, as many for each."""
        world = self.ranks[1]
        return self.count // world if self.drop_last else -(-self.count // world)

    def windows(self, epoch: int) -> Iterator[Places]:
        """This rank's places, in the order of an epoch; what stands in one array is best read together."""
        at = 0
        held: list[tuple[int, int]] = []
        rows = size_bytes = 0
        for first, last, piece_bytes in self._pieces(epoch):
            if held and (rows + last - first > self.buffer or size_bytes + piece_bytes > WINDOW_BYTES):
                yield self._window(held, epoch, at)
                at, held, rows, size_bytes = at + rows, [], 0, 0
            held.append((first, last))
            rows, size_bytes = rows + last - first, size_bytes + piece_bytes
        if held:
            yield self._window(held, epoch, at)

    def turns(self, epoch: int, turn: Turn, batch: int) -> Iterator[tuple[Places, Places]]:
        """What of each window is one worker's: its positions in the rank's order, and the places there."""
        at = 0
        for window in self.windows(epoch):
            positions = np.arange(at, at + len(window))
            at += len(window)
            mine = positions >= turn.start
            mine &= (positions - turn.origin) // batch % turn.workers == turn.worker
            if mine.any():
                yield positions[mine], window[mine]

    def _window(self, pieces: list[tuple[int, int]], epoch: int, at: int) -> Places:
        places = np.concatenate([np.arange(first, last) for first, last in pieces])
        if self.shuffle:
            np.random.default_rng([self.seed, epoch, self.ranks[0], at + 1]).shuffle(places)
        return places

    def _pieces(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """This rank's share of row groups: first place, last place + 1, bytes. None has more than `buffer` places."""
        starts = self.groups[:, 0]
        stops = np.append(starts[1:], self.count)
        order = np.arange(len(starts))
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        ends = np.cumsum((stops - starts)[order])
        at, left = self.length * self.ranks[0], self.length
        while left:
            at %= self.count
            position = int(np.searchsorted(ends, at, "right"))
            group = order[position]
            rows = int(min(ends[position] - at, left, self.buffer))
            first = int(stops[group] - (ends[position] - at))
            size_bytes = int(self.groups[group, 1]) * rows // int(stops[group] - starts[group])
            yield first, first + rows, size_bytes
            at, left = at + rows, left - rows
