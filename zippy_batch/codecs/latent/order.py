"""The order in which the positions of a grid are coded, and which coded neighbours each position sees.

The grid is coded from coarse to fine. Level l is the grid of every 2^l-th row and column. The coarsest level, at most
2x2 positions, is coded without neighbours. Every finer level then adds three 2x2 parities, each of which sees those
before it at the level's own spacing:

    level 2   level 1   level 0
    A . . .   A . c .   A 2 c 2      A: coarsest level     a, b, c: parities 1, 2, 3 of level 1
    . . . .   . . . .   3 1 3 1      1, 2, 3: parities of level 0
    . . . .   b . a .   b 2 a 2      (in the program's names, parity 2 is (0, 1) and parity 3 is (1, 0))
    . . . .   . . . .   3 1 3 1

Source of the parities: Li et al. 2023 (arXiv:2302.14402).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""(row, column) of the 2x2 parities, in units of the level's spacing. Parity 0 is the next coarser level."""

_KNIGHTS = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))

NEAR: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((0, -1), (0, 1), (-1, 0), (1, 0)),
    ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
)
"""Offsets (row, column) of the coded neighbours of each parity, of which all channels are seen."""

FAR: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((-1, -3), (-1, 3), (1, -3), (1, 3), (-3, -1), (-3, 1), (3, -1), (3, 1)),
    _KNIGHTS,
    _KNIGHTS,
)
"""Offsets of coded positions further away, of which the first channels are seen."""

VISIT_KINDS = ("blind", "coarse.1", "coarse.2", "coarse.3", "fine.1", "fine.2", "fine.3")
"""Sets of layers: of the coarsest level, of the parities of all levels above 0, and of level 0."""

DEPTHS = 4
"""Levels 1 to 4 have a bias of their own; coarser ones share that of level 4."""


def parity_of(kind: str) -> int:
    """Number of the parity that a kind of visits is of."""
    return 0 if kind == "blind" else int(kind[-1])


@dataclass(frozen=True)
class Visit:
    """Positions that are coded together: rows row, row + stride, ... and columns column, column + stride, ..."""

    kind: str
    parity: int
    level: int
    row: int
    column: int
    stride: int
    spacing: int
    """Distance in rows or columns of the full grid that an offset of 1 stands for."""

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of this visit in a grid of (h, w)."""
        return len(range(self.row, grid[0], self.stride)), len(range(self.column, grid[1], self.stride))

    @property
    def rows(self) -> slice:
        return slice(self.row, None, self.stride)

    @property
    def columns(self) -> slice:
        return slice(self.column, None, self.stride)

    @property
    def depth(self) -> int | None:
        """Number of the bias of a coarse level; None elsewhere."""
        return min(self.level, DEPTHS) - 1 if self.kind.startswith("coarse") else None


def level_count(grid: tuple[int, int]) -> int:
    """Number of the coarsest level: the first with at most 2x2 positions."""
    h, w = grid
    level = 0
    while max(h, w) > 2:
        h, w, level = -(-h // 2), -(-w // 2), level + 1
    return level


def visits(grid: tuple[int, int]) -> Iterator[Visit]:
    """All visits of a grid (h, w) in coding order; those without positions are left out."""
    top = level_count(grid)
    yield Visit("blind", 0, top, 0, 0, 1 << top, 1 << top)
    for level in range(top - 1, -1, -1):
        spacing = 1 << level
        for parity in (1, 2, 3):
            i, j = PARITIES[parity]
            kind = f"{'coarse' if level else 'fine'}.{parity}"
            visit = Visit(kind, parity, level, i * spacing, j * spacing, 2 * spacing, spacing)
            if min(visit.shape(grid)):
                yield visit
