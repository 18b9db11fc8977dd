"""The coding order: every position once, and nothing seen that is not coded yet."""

from __future__ import annotations

from itertools import product

import pytest

from zippy_batch.codecs.latent.order import FAR, NEAR, VISIT_KINDS, level_count, visits

GRIDS = [*product(range(1, 13), repeat=2), (1, 512), (512, 1), (37, 53), (64, 65), (129, 7)]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_each_position_is_coded_once_after_all_its_neighbours(grid: tuple[int, int]) -> None:
    h, w = grid
    coded: set[tuple[int, int]] = set()
    for visit in visits(grid):
        here = list(product(range(h)[visit.rows], range(w)[visit.columns]))
        rows, columns = visit.shape(grid)
        assert len(here) == rows * columns > 0
        for row, column in here:
            for dy, dx in (*NEAR[visit.parity], *FAR[visit.parity]):
                seen = row + dy * visit.spacing, column + dx * visit.spacing
                assert seen in coded or not (0 <= seen[0] < h and 0 <= seen[1] < w)
        assert coded.isdisjoint(here)
        coded.update(here)
    assert len(coded) == h * w


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3), (5, 6), (22, 28)])
def test_levels_run_from_at_most_four_positions_to_the_whole_grid(grid: tuple[int, int]) -> None:
    found = list(visits(grid))
    first = found[0]
    assert (first.kind, first.level) == ("blind", level_count(grid))
    assert max(first.shape(grid)) <= 2
    assert [visit.level for visit in found] == sorted((visit.level for visit in found), reverse=True)
    for visit in found[1:]:
        assert visit.kind == f"{'coarse' if visit.level else 'fine'}.{visit.parity}"
        assert visit.kind in VISIT_KINDS
        assert (visit.depth is None) == (visit.level == 0)
    assert max((visit.depth for visit in visits((512, 512)) if visit.depth is not None), default=0) == 3


def test_the_order_of_a_small_grid_is_pinned() -> None:
    names = dict(zip([visit.kind for visit in visits((5, 6))], "ABCDEFG", strict=True))
    picture = [[" "] * 6 for _ in range(5)]
    for visit in visits((5, 6)):
        for row, column in product(range(5)[visit.rows], range(6)[visit.columns]):
            picture[row][column] = names[visit.kind]
    assert ["".join(row) for row in picture] == ["AFCFAF", "GEGEGE", "DFBFDF", "GEGEGE", "AFCFAF"]
