"""The exact codec: coefficients to payloads and back, on any table, size and sampling."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import TINY_EXACT, tiny_exact_model, tiny_exact_network

from zippy_batch.codecs.exact import blocks, context, features, mixture, passes
from zippy_batch.codecs.exact.codec import ExactCodec, ExactItem
from zippy_batch.codecs.exact.export import model_arrays
from zippy_batch.codecs.exact.network import (
    ENDS,
    MIXTURE,
    PARAMETERS,
    ExactArchitecture,
    Seen,
    Step,
    _mixture_bits,
    stages_of,
)
from zippy_batch.codecs.model_file import Model, model_from_bytes, serialise
from zippy_batch.errors import ModelError
from zippy_batch.jpeg.file import Coefficients
from zippy_batch.jpeg.markers import Component, Frame

Image = tuple[Frame, Coefficients]


@pytest.fixture(scope="module")
def codec() -> ExactCodec:
    return ExactCodec(tiny_exact_model())


def frame_of(height: int, width: int, factors: Sequence[tuple[int, int]], tables: NDArray[np.uint16]) -> Frame:
    tallest, widest = max(v for _, v in factors), max(h for h, _ in factors)
    components = []
    for (h, v), table in zip(factors, tables, strict=False):
        high, wide = (-(-(-(-side * f // m)) // 8) for side, f, m in ((height, v, tallest), (width, h, widest)))  # noqa: B002
        components.append(Component(h, v, high, wide, table))
    return Frame(height, width, tuple(components))


def images(
    n: int, height: int, width: int, factors: Sequence[tuple[int, int]], seed: int = 0, spread: float = 8.0
) -> list[Image]:
    """Coefficients that fall off as those of pictures do, under random tables."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        frame = frame_of(height, width, factors, rng.integers(1, 60, (3, 64)).astype(np.uint16))
        scale = spread / (1 + np.arange(64) / 4)
        out.append((frame, tuple(np.rint(rng.laplace(0, scale, s)).astype(np.int16) for s in frame.shapes)))
    return out


def assert_comes_back(codec: ExactCodec, batch: Sequence[Image]) -> list[bytes]:
    payloads = codec.encode(batch)
    decoded, damage = codec.decode_checked([ExactItem(p, f) for p, (f, _) in zip(payloads, batch, strict=True)])
    assert damage == {}
    for found, (_, expected) in zip(decoded, batch, strict=True):
        assert len(found) == len(expected)
        assert all(np.array_equal(a, b) and a.dtype == np.int16 for a, b in zip(found, expected, strict=True))
    return payloads


SAMPLINGS: dict[str, list[tuple[int, int]]] = {
    "grey": [(1, 1)],
    "4:4:4": [(1, 1)] * 3,
    "4:2:0": [(2, 2), (1, 1), (1, 1)],
    "4:2:2": [(2, 1), (1, 1), (1, 1)],
    "4:1:1": [(4, 1), (1, 1), (1, 1)],
    "chroma larger": [(1, 1), (2, 2), (2, 1)],
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(1, 1), (8, 17), (42, 42), (33, 90)])
def test_coefficients_come_back(codec: ExactCodec, sampling: str, size: tuple[int, int]) -> None:
    assert_comes_back(codec, images(3, *size, SAMPLINGS[sampling]))


@pytest.mark.parametrize("value", [-32768, -1101, -1, 0, 1100, 1101, 32767])
def test_any_value_comes_back(codec: ExactCodec, value: int) -> None:
    batch = images(2, 20, 20, SAMPLINGS["4:2:0"])
    for _, coefficients in batch:
        for c in coefficients:
            c[0, 0, ::7] = value
            c[-1, -1, 63] = value
    assert_comes_back(codec, batch)


@pytest.mark.parametrize("end", [None, 0, 1, 62, 63])
def test_blocks_that_all_end_at_one_place(codec: ExactCodec, end: int | None) -> None:
    batch = images(2, 20, 20, SAMPLINGS["4:2:0"])
    for _, coefficients in batch:
        for c in coefficients:
            c[..., 0 if end is None else end + 1 :] = 0
            if end is not None:
                c[..., end] = -1
    assert_comes_back(codec, batch)


def test_steps_of_sixteen_bits(codec: ExactCodec) -> None:
    batch = images(2, 24, 24, SAMPLINGS["4:4:4"])
    for frame, _ in batch:
        for c in frame.components:
            c.table[::2] = 65535
            c.table[1::2] = 1
    assert_comes_back(codec, batch)


def test_a_payload_does_not_depend_on_its_batch(codec: ExactCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [
        image
        for number, (sampling, size) in enumerate(
            [("4:2:0", (50, 40)), ("grey", (9, 60)), ("4:4:4", (50, 40)), ("4:2:0", (17, 3)), ("4:2:0", (50, 40))]
        )
        for image in images(3, *size, SAMPLINGS[sampling], seed=number)
    ]
    together = assert_comes_back(codec, batch)
    assert together == [codec.encode([one])[0] for one in batch]
    monkeypatch.setattr(context, "CHUNK_ROWS", 5)
    monkeypatch.setattr("zippy_batch.codecs.exact.codec.BATCH_BLOCKS", 60)
    assert codec.encode(batch) == together


def test_damage_is_named_and_neighbours_stay(codec: ExactCodec) -> None:
    batch = images(4, 42, 42, SAMPLINGS["4:2:0"])
    payloads = codec.encode(batch)
    broken = bytearray(payloads[1])
    broken[len(broken) // 2] ^= 16
    payloads[1] = bytes(broken)
    payloads[3] = b""
    decoded, damage = codec.decode_checked([ExactItem(p, f) for p, (f, _) in zip(payloads, batch, strict=True)])
    assert sorted(damage) == [1, 3]
    assert "damaged bytes, or not this model" in damage[1]
    for i in (0, 2):
        assert all(np.array_equal(a, b) for a, b in zip(decoded[i], batch[i][1], strict=True))


@given(st.binary(max_size=200), st.sampled_from(sorted(SAMPLINGS)))
@settings(max_examples=60, deadline=None)
def test_noise_decodes_to_damage(data: bytes, sampling: str) -> None:
    frame = frame_of(20, 30, SAMPLINGS[sampling], np.full((3, 64), 7, np.uint16))
    codec = ExactCodec(tiny_exact_model())
    decoded, damage = codec.decode_checked([ExactItem(data, frame)])
    assert [c.shape for c in decoded[0]] == frame.shapes
    assert set(damage) <= {0}


def test_ends() -> None:
    c = np.zeros((4, 64), np.int16)
    c[1, 0] = 5
    c[2, [0, 1, 17]] = 1
    c[3, 63] = -1
    assert features.ends_of(c).tolist() == [0, 0, 17, 63]
    assert np.count_nonzero(c) == 5
    table = features.end_table()
    assert (table.max(1)[[0, 1, 2, 8, 63]] == 256).all()
    assert table.min() == 0
    assert np.abs(table.sum(1) - 256).max() <= 1


def _intervals(
    sums: NDArray[np.float32],
    shift: NDArray[np.int64],
    ends: NDArray[np.int64],
    first: int,
    how: mixture.Quantisers,
    values: Any,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Starts and frequencies of values (R, G), 0 of those behind an end."""
    rows, size = values.shape
    coefficients = np.zeros((rows, 64), np.int16)
    coefficients[:, first : first + size] = values
    image = np.repeat(np.arange(len(how.step)), rows // len(how.step))
    found = np.zeros(values.size, np.uint16), np.zeros(values.size, np.uint16), 0
    where = np.arange(rows), image, ends
    scale = mixture.Scale.of(np.zeros_like(shift), shift).arrays
    room = np.zeros(len(how.step), np.int64)
    count = mixture.intervals(sums, scale, where, first, how.arrays, coefficients, found, room)
    coded = first + np.arange(size) <= ends[:, None]
    assert count == coded.sum()
    start, frequency = np.zeros(values.shape, np.uint16), np.zeros(values.shape, np.uint16)
    start[coded], frequency[coded] = found[0][:count], found[1][:count]
    return start, frequency


def test_kernels_agree_with_the_definition() -> None:
    """The compiled intervals against Python integers, which cannot overflow."""
    rng = np.random.default_rng(1)
    size, rows, first = 3, 120, 4
    shift = rng.integers(1, 8, PARAMETERS * size)
    accumulated = rng.integers(-(1 << 15), 1 << 15, (rows, PARAMETERS * size)).astype(np.float32)
    accumulated[:12] *= 500
    steps = rng.choice([1, 2, 3, 7, 16, 99, 255, 65535], (2, size))
    how = mixture.Quantisers.of(steps, np.array([0, 4, 10]))
    values = rng.integers(-60, 61, (rows, size)).astype(np.int16)
    values[values == 0] = 1
    ends = rng.integers(first, first + size + 3, rows)
    start, frequency = _intervals(accumulated, shift, ends, first, how, values)
    for r in range(rows):
        n = r // (rows // 2)
        for j in range(size):
            if first + j > ends[r]:
                assert frequency[r, j] == 0
                continue
            last = bool(first + j == ends[r])
            outputs, shifts = accumulated[r, j::size].astype(np.int64), shift[j::size]
            quantiser = int(how.step[n, j]), int(how.octaves[n, j]), int(how.unit[j])
            lo, hi, cumulative = mixture.distribution(outputs, shifts, *quantiser, last)
            x = int(values[r, j])
            expected = (cumulative(x), cumulative(x + 1) - cumulative(x)) if lo <= x <= hi else (mixture.ESCAPE, 1)
            assert (start[r, j], frequency[r, j]) == expected
            everything = [cumulative(v) for v in range(lo, hi + 2)]
            assert everything[0] == 0
            assert everything[-1] == mixture.ESCAPE
            likely = np.diff(everything)
            if last and lo < 0 < hi:
                assert likely[-lo] == 0
                likely = np.delete(likely, -lo)
            assert likely.min() >= 1


def test_ends_agree_with_the_definition() -> None:
    rng = np.random.default_rng(3)
    shift = rng.integers(1, 8, ENDS)
    accumulated = rng.integers(-(1 << 13), 1 << 13, (200, ENDS)).astype(np.float32)
    accumulated[:50] *= 100
    values = rng.integers(0, ENDS, 200)
    start, frequency = np.zeros(200, np.uint16), np.zeros(200, np.uint16)
    where = np.arange(200), np.zeros(200, np.int64), values
    scale = mixture.Scale.of(np.zeros_like(shift), shift).arrays
    assert mixture.end_intervals(accumulated, scale, where, (start, frequency, 0), np.zeros(1, np.int64)) == 200
    for r in range(200):
        cumulative = mixture.end_distribution(accumulated[r].astype(np.int64), shift)
        assert (cumulative[0], cumulative[-1]) == (0, 65536)
        assert min(np.diff(cumulative)) >= 1
        x = values[r]
        assert (start[r], frequency[r]) == (cumulative[x], cumulative[x + 1] - cumulative[x])


@pytest.mark.parametrize("last", [False, True])
def test_integer_frequencies_are_those_of_the_float_mixture(last: bool) -> None:
    """Code lengths of the kernels against the training loss, for the same parameters."""
    rng = np.random.default_rng(2)
    rows, size, first = 400, 4, 2
    o = np.concatenate([rng.normal(0, 0.5, (rows, 12)), rng.normal(1.5, 1, (rows, 12)), rng.normal(0, 2, (rows, 8))], 1)
    unit, steps = np.array([3, 5, 2, 4]), rng.integers(2, 40, (1, size))
    bits = np.repeat([mixture.MEAN_BITS] * MIXTURE + [mixture.SCALE_BITS] * MIXTURE + [mixture.LOGIT_BITS] * 2, size)
    accumulated = np.rint(o * 2.0 ** (bits + 3)).astype(np.float32)
    how, shift = mixture.Quantisers.of(steps, unit), np.full(PARAMETERS * size, 3)
    values = np.rint(rng.normal(0, 2, (rows, size))).astype(np.int16)
    values[values == 0] = 1 if last else 0
    for j in range(size):
        ends = np.full(rows, first + j if last else 63)
        _, frequency = _intervals(accumulated, shift, ends, first, how, values)
        one = _mixture_bits(
            torch.from_numpy(o[:, j::size]).float(),
            torch.from_numpy(values[:, j : j + 1].astype(np.float32)),
            (2.0 ** torch.from_numpy(unit[j : j + 1]).float() / torch.from_numpy(steps[:, j])).expand(rows, 1),
            torch.full((rows, 1), 0 if last else 9),
            first,
        ).numpy()
        likely = frequency[:, j] > 50
        coded = 16 - np.log2(frequency[likely, j].astype(float))
        assert np.abs(coded - one[likely]).max() < 0.5
        assert abs((coded - one[likely]).mean()) < 0.015


def test_integers_follow_the_float_network() -> None:
    """The integer model codes for about the bits that the float network of training promises."""
    network = tiny_exact_network(3)
    for module in network.modules():
        if isinstance(module, Step):
            torch.nn.init.normal_(module.out.weight, 0, 0.03)
    codec = ExactCodec(_model(model_arrays(network)))
    batch = images(20, 48, 48, SAMPLINGS["grey"], seed=5, spread=1.5)
    coded_bits = 8 * sum(len(p) for p in codec.encode(batch)) - 16 * len(batch)
    c = torch.from_numpy(np.stack([x[0] for _, x in batch])).float()
    steps = torch.from_numpy(np.stack([f.components[0].table for f, _ in batch]).astype(np.float32))
    laid_out = blocks.planes_of([f for f, _ in batch])["y"]
    static = torch.from_numpy(laid_out.features[laid_out.feature_row]).view(20, 36, -1) / 256
    with torch.no_grad():
        float_bits = network.planes["y"](Seen.of(c, steps), c, steps, static, []).sum().item()
    assert coded_bits == pytest.approx(float_bits, rel=0.02)


def _model(arrays: dict[str, NDArray[Any]]) -> Model:
    return model_from_bytes(serialise(arrays, {"architecture": TINY_EXACT.to_dict()}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("y.0.0.hidden.0.weight", lambda w: np.full_like(w, 32767), "not exact"),
        ("y.state.taps.0", lambda w: np.full_like(w, -32768), "not exact"),
        ("cb.1.0.out.shift", lambda s: s * 0, "shifts must be 1..22"),
        ("cr.unit", lambda u: u + 11, "unit must be"),
        ("y.1.0.hidden.1.bias", lambda b: b[:-1], "expected int32"),
    ],
)
def test_a_damaged_model_is_refused(name: str, change: Callable[[NDArray[Any]], NDArray[Any]], message: str) -> None:
    arrays = dict(tiny_exact_model().arrays)
    arrays[name] = change(arrays[name])
    with pytest.raises(ModelError, match=message):
        ExactCodec(_model(arrays))


def test_lists_of_inputs_add_what_products_would() -> None:
    """Blocks of two images, of which some are not listed: the group before of two stages, and this one."""
    rng = np.random.default_rng(4)
    frames = [frame_of(side, 40, SAMPLINGS["grey"], np.full((1, 64), 9, np.uint16)) for side in (24, 60)]
    laid_out = blocks.planes_of(frames)["y"]
    rows, width = len(laid_out.image), 21
    number = {place: i for i, place in enumerate(zip(laid_out.image, laid_out.row, laid_out.column, strict=True))}
    around: list[tuple[NDArray[np.int64], passes.Inputs, NDArray[np.float32]]] = []
    expected = np.zeros((rows, width))
    own = np.zeros((rows, width), np.float32)
    for (start, stop), sets in {(12, 19): [[4], [0, 3, 8]], (20, 22): [[1, 4, 7]]}.items():
        coefficients = rng.integers(-400, 401, (rows, 64)) * (rng.random((rows, 64)) < 0.3)
        listed = np.flatnonzero(rng.random(rows) < 0.7)
        inputs = passes.no_inputs(rows, features.group_inputs(start, stop))
        seen = coefficients.astype(np.int16)
        passes.list_coefficients(seen, (start, stop), listed, laid_out.image, laid_out.steps, inputs)
        v = (coefficients[:, start:stop] * 9).clip(-2047, 2047)
        size, linear = (
            features.companding_table()[abs(v)],
            (v >> 2).clip(-255, 255)[:, : max(0, features.LINEAR - start)],
        )
        dense = np.zeros((rows, features.group_inputs(start, stop)))
        dense[listed] = np.concatenate([np.sign(v) * size, linear, size], axis=1)[listed]
        weight = rng.integers(-50, 51, (width, 9, dense.shape[1]))
        for (n, r, c), i in number.items():
            for k in sets[(r + c) % 2 if len(sets) == 2 else 0]:
                other = number.get((n, r + k // 3 - 1, c + k % 3 - 1))
                expected[i] += 0 if other is None else weight[:, k] @ dense[other]
        columns = [passes.columns_of(weight[:, k].astype(np.float32), stop - start) for k in range(9)]
        around.append((np.array([sum(1 << k for k in some) for some in sets]), inputs, np.concatenate(columns)))
        own[:] = 0
        passes.add_own(own, inputs, columns[4])
        assert np.array_equal(own, dense @ weight[:, 4].T)
    state, settled = np.zeros((rows, width), np.float32), np.zeros((rows // 2, width), np.float32)
    some = np.arange(0, rows, 2)[: rows // 2]
    before, now = around
    passes.advance(state, some, laid_out.grid, before, now, 30000, settled)
    assert np.array_equal(state[some], expected[some])
    assert np.array_equal(settled, expected[some].clip(-30000, 30000))
    assert np.abs(expected[some]).max() > 30000
    assert not state[1::2].any()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_blocks_are_chosen_stage_by_stage(stages: int) -> None:
    rng = np.random.default_rng(5)
    laid_out = blocks.planes_of([frame_of(50, 40, SAMPLINGS["grey"], np.full((1, 64), 9, np.uint16))] * 2)["y"]
    ends = rng.integers(0, 64, len(laid_out.image))
    begins, rows = passes.choose(ends, 20, laid_out.grid, stages)
    stage = stages_of(laid_out.row, laid_out.column, stages)
    expected = [np.flatnonzero((stage == k) & (ends >= 20)) for k in range(stages)]
    assert np.array_equal(rows, np.concatenate(expected))
    assert np.diff(begins).tolist() == [len(one) for one in expected]


def test_no_array_of_a_model_may_hold_floats() -> None:
    """So none can be NaN or infinite."""
    whole = tiny_exact_model().arrays
    kinds = {name.rpartition(".")[2]: name for name in whole}
    for name in kinds.values():
        array = whole[name]
        with pytest.raises(ModelError, match=rf"{re.escape(name)}.*expected int"):
            ExactCodec(_model({**whole, name: np.full(array.shape, np.nan, np.float32)}))


@pytest.mark.parametrize(
    "change", [{"groups": [1, 62]}, {"stages": [1, 4]}, {"state": 0}, {"hidden": [10**9]}, {"groups": [0, 64]}]
)
def test_an_impossible_architecture_is_refused(change: dict[str, Any]) -> None:
    card = TINY_EXACT.to_dict()
    card["chroma"] = {**card["chroma"], **change}
    with pytest.raises(ValueError, match=r"groups|stages|widths"):
        ExactArchitecture.from_dict(card)


def test_tables_of_the_format() -> None:
    """They are computed when the program starts, and part of the format."""
    tables = (
        *(mixture.LOGISTIC, mixture.WEIGHT, mixture.SLOPE, mixture.RADIUS, mixture.EXPONENTIAL),
        *(features.companding_table(), features.end_table(), features.log2_steps(np.arange(1, 65536))),
    )
    assert [zlib.crc32(t.astype("<i8").tobytes()) for t in tables] == PINNED


PINNED = [888080906, 158764400, 2862501306, 278710337, 2561286589, 2605919452, 14555244, 865313607]
