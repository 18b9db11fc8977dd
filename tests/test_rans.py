from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zippy_batch.codecs.latent.export import prior_frequencies
from zippy_batch.codecs.latent.network import SCALE_LEVELS
from zippy_batch.codecs.rans import RESIDUAL_LIMIT, Decoder, Tables, encode, lane_count

BOOK = Tables.from_frequencies([prior_frequencies(i) for i in range(1, SCALE_LEVELS)])


def symbols(seed: int, n: int, t: int, wild: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (n, t) drawn roughly from their tables, a share `wild` of them far outside."""
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, SCALE_LEVELS, (n, t)).astype(np.uint8)
    r = np.rint(rng.normal(size=(n, t)) * 0.11 * np.exp(0.1 * tables)).astype(np.int32)
    far = rng.random((n, t)) < wild
    r[far] = rng.integers(-RESIDUAL_LIMIT, RESIDUAL_LIMIT + 1, far.sum())
    r[tables == 0] = 0
    return r, tables


def decode(
    payloads: list[bytes], tables: np.ndarray, lanes: np.ndarray, cuts: list[int], compiled: bool = True
) -> tuple[np.ndarray, dict[int, str]]:
    decoder = Decoder(payloads, int(lanes.max(initial=0)) + 1, BOOK, compiled)
    edges = [0, *cuts, tables.shape[1]]
    parts = [decoder.pop(tables[:, a:b], lanes[a:b]) for a, b in pairwise(edges)]
    return np.concatenate(parts, 1), decoder.finish()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    t=st.integers(1, 200),
    lanes=st.integers(1, 5),
    wild=st.sampled_from([0.0, 0.02, 1.0]),
)
def test_round_trip_and_both_implementations_agree(seed: int, n: int, t: int, lanes: int, wild: float) -> None:
    residuals, tables = symbols(seed, n, t, wild)
    lane = np.arange(t) % lanes
    lane[0] = lanes - 1
    payloads = encode(residuals, tables, lane, BOOK)
    assert payloads == encode(residuals, tables, lane, BOOK, compiled=False)
    for compiled in (True, False):
        got, damage = decode(payloads, tables, lane, [t // 3, t // 2], compiled)
        assert np.array_equal(got, residuals)
        assert damage == {}


PINNED = ["7926bb", "066f", "591affff8190ffff7e70"]


def test_bytes_on_disk_are_pinned() -> None:
    residuals = np.array([[0, 1, -2, 0, 3, 0], [0, 0, 0, 0, 0, 0], [400, -400, 0, 1, 0, 0]], np.int32)
    tables = np.array([[20, 25, 30, 0, 40, 5], [1, 2, 3, 4, 5, 6], [10, 10, 0, 30, 20, 20]], np.uint8)
    payloads = encode(residuals, tables, np.zeros(6, np.int64), BOOK)
    assert [p.hex() for p in payloads] == PINNED


def test_overhead_is_below_three_bytes_an_image() -> None:
    residuals, tables = symbols(7, 64, 600)
    size = sum(map(len, encode(residuals, tables, np.zeros(600, np.int64), BOOK)))
    assert size - BOOK.bits(residuals, tables) / 8 < 64 * 2.5


def test_an_image_of_certain_symbols_takes_its_checksum_only() -> None:
    certain = encode(np.zeros((1, 50), np.int32), np.zeros((1, 50), np.uint8), np.zeros(50, np.int64), BOOK)
    assert len(certain[0]) == 2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.binary(max_size=64), lanes=st.integers(1, 4))
def test_hostile_bytes_end_in_bounded_time_and_are_reported(seed: int, data: bytes, lanes: int) -> None:
    _, tables = symbols(seed, 1, 60)
    lane = np.arange(60) % lanes
    got, damage = decode([data], tables, lane, [])
    assert damage or encode(got, tables, lane, BOOK) == [data]
    assert np.array_equal(got, decode([data], tables, lane, [], compiled=False)[0])


@pytest.mark.parametrize("flip", range(0, 24))
def test_a_flipped_bit_leaves_the_state_off_zero(flip: int) -> None:
    residuals, tables = symbols(3, 1, 400)
    payload = bytearray(encode(residuals, tables, np.zeros(400, np.int64), BOOK)[0])
    payload[flip * len(payload) // 24] ^= 1 << (flip % 8)
    assert 0 in decode([bytes(payload)], tables, np.zeros(400, np.int64), [])[1]


def test_trailing_or_missing_bytes_are_reported() -> None:
    residuals, tables = symbols(4, 2, 100)
    lane = np.zeros(100, np.int64)
    a, b = encode(residuals, tables, lane, BOOK)
    assert set(decode([a + b"\0", b[:-1]], tables, lane, [])[1]) == {0, 1}


def test_lanes_grow_with_the_image() -> None:
    assert lane_count(36) == lane_count(28 * 23) == 1
    assert lane_count(512 * 512) == 256


@pytest.mark.parametrize("frequencies", [[65536], [65535, 0], [1, 2, 65532], [30000, 30000]])
def test_bad_tables_are_refused(frequencies: list[int]) -> None:
    with pytest.raises(ValueError, match="table 1"):
        Tables.from_frequencies([np.array(frequencies)])
