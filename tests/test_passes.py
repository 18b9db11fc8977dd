"""Passes between products: the compiled ones and those of other devices make the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.int8 import MANTISSA_TOP, SHIFT_TOP
from zippy_batch.codecs.latent import device_passes, passes
from zippy_batch.codecs.latent.context import MEAN_TOP, VALUE_TOP, Place
from zippy_batch.codecs.latent.network import SCALE_LEVELS
from zippy_batch.codecs.latent.order import FAR, NEAR, visits
from zippy_batch.codecs.latent.synthesis import EDGE_MANTISSA_TOP, GATE_TOP, STREAM_TOP
from zippy_batch.codecs.rans import RESIDUAL_LIMIT

N, M, FAR_LATENTS, C, G = 2, 12, 5, 7, 4
GRID = (5, 7)
SUM_TOP = (1 << 24) - 1
"""Largest sum of a product."""
BIAS_TOP = (1 << 30) - 1
LIMIT_OF_SUMMANDS = 1 << 28


class Draw:
    """Random arrays, a part of whose values are extreme."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._sums = ("int32", "float32")[seed % 2]

    def __call__(self, kind: str, top: int, *shape: int, low: int | None = None) -> NDArray[Any]:
        """Integers from low, by default -top, to top."""
        low = -top if low is None else low
        values = self._rng.integers(low, top + 1, shape)
        # small ones too: most values of a wide range are large
        values = np.where(self._rng.random(shape) < 0.4, values >> self._rng.integers(0, 40, shape), values)
        for extreme in (low, top):
            values = np.where(self._rng.random(shape) < 0.1, extreme, values)
        return values.astype(kind)

    def sums(self, top: int, *shape: int) -> NDArray[Any]:
        """Of one of the types that products come in."""
        return self("int32", top, *shape).astype(self._sums)

    def scale(self, *shape: int, top: int = MANTISSA_TOP, low: int = 1) -> tuple[NDArray[np.int32], int]:
        """Mantissas up to top and a shift from low."""
        return self("int32", top, *shape, low=0), int(self._rng.integers(low, SHIFT_TOP + 1))


@pytest.fixture(params=range(6))
def draw(request: pytest.FixtureRequest) -> Draw:
    return Draw(request.param)


def as_tensors(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(as_tensors, argument))
    return torch.from_numpy(argument.copy()) if isinstance(argument, np.ndarray) else argument


def agree(name: str, *arguments: Any) -> None:
    """Both passes of that name leave the same in all arrays that they are given."""
    tensors = as_tensors(arguments)
    before = [a.copy() for a in arguments if isinstance(a, np.ndarray)]
    getattr(passes, name)(*arguments)
    getattr(device_passes, name)(*tensors)
    pairs = [(a, b.numpy()) for a, b in zip(arguments, tensors, strict=True) if isinstance(a, np.ndarray)]
    for compiled, other in pairs:
        assert np.array_equal(compiled, other)
    assert any(not np.array_equal(a, b) for a, (b, _) in zip(before, pairs, strict=True))


def places() -> list[tuple[int, Place]]:
    """Parity and place of every visit of GRID."""
    return [(visit.parity, Place.of(visit, GRID)) for visit in visits(GRID)]


def filled(kind: str, *shape: int) -> NDArray[Any]:
    """An output: what is in it before must not matter."""
    return np.full(shape, 77, kind)


def test_gather(draw: Draw) -> None:
    canvas, sizes = draw("int8", 127, N, *GRID, M), draw("int8", 127, N, *GRID, M, low=0)
    for parity, place in places()[1:]:
        near, far = (np.array(offsets[parity], np.int64) for offsets in (NEAR, FAR))
        out = filled("int8", N * place.positions, (len(near) + 1) * M + len(far) * FAR_LATENTS)
        agree("gather", canvas, sizes, place.numbers(), near, far, FAR_LATENTS, out)


@pytest.mark.parametrize("sizes", [1, N])
@pytest.mark.parametrize("seen", [True, False])
def test_share(draw: Draw, sizes: int, seen: bool) -> None:
    positions = 6
    # no more than a model may make of them
    scale = draw.scale(C, low=26)
    sums = draw.sums(SUM_TOP, N * positions if seen else 0, C)
    static, level = (draw("int32", LIMIT_OF_SUMMANDS, *shape, C) for shape in ((sizes, positions), (N,)))
    agree("share", sums, scale, static, level, filled("int32", N * positions, C))


@pytest.mark.parametrize("has_own", [True, False])
def test_rectify(draw: Draw, has_own: bool) -> None:
    own = draw.sums(SUM_TOP, 9 if has_own else 0, C)
    shared, bias = draw("int32", 1 << 30, 9, C), draw("int32", LIMIT_OF_SUMMANDS, C)
    scales = draw.scale(C, low=26), draw.scale(C)
    agree("rectify", shared, bias, own, *scales, filled("int8", 9, C))


def test_rectify_sums(draw: Draw) -> None:
    sums, bias = draw.sums(SUM_TOP, 9, C), draw("int32", BIAS_TOP, C)
    agree("rectify_sums", sums, bias, draw.scale(C), filled("int8", 9, C))


def test_predict(draw: Draw) -> None:
    rows = N * 6
    agree(
        "predict", draw.sums(SUM_TOP, rows, 2 * G), draw("int32", BIAS_TOP, 2 * G),
        draw.scale(2 * G), draw.scale(N, G),
        draw("int32", 32767, N, G), (MEAN_TOP, VALUE_TOP, SCALE_LEVELS - 1),
        filled("int32", rows, G), filled("uint8", rows, G),
    )  # fmt: skip


def test_quantise(draw: Draw) -> None:
    # numbers that floats of 32 bits hold, and thresholds that leave no ties
    y = draw("int64", 1 << 14, N, *GRID, M).astype(np.float32) / 8
    threshold = np.array([k / 64 for k in range(40) if k % 5][:SCALE_LEVELS] * 2, np.float32)
    for _, place in places():
        rows = N * place.positions
        mean = draw("int32", 1 << 11, rows, G)
        index = draw("uint8", SCALE_LEVELS - 1, rows, G, low=0)
        out = filled("int32", rows, G)
        agree("quantise", y, place.numbers(), 3, mean, index, threshold, RESIDUAL_LIMIT, out)
        assert not out[index == 0].any()


def test_absorb(draw: Draw) -> None:
    y_hat, canvas, sizes = filled("int32", N, *GRID, M), filled("int8", N, *GRID, M), filled("int8", N, *GRID, M)
    for _, place in places():
        rows = N * place.positions
        mean, residual = draw("int32", VALUE_TOP, rows, G), draw("int32", RESIDUAL_LIMIT + 1, rows, G)
        agree(
            "absorb", mean, residual, place.numbers(), 3, draw.scale(N, G),
            y_hat, canvas, sizes, filled("int8", rows, 2 * M),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["passes", "device_passes"])
def test_sizes_are_rounded_roots(name: str) -> None:
    """Of every canvas value, whatever the square root of a device is."""
    canvas = np.arange(-127, 128)
    wanted = [next(k for k in range(128) if (2 * k + 1) ** 2 > 4 * 127 * abs(c)) for c in canvas.tolist()]
    shape = (1, 1, 1, len(canvas))
    y_hat, seen, sizes = np.zeros(shape, np.int32), np.zeros(shape, np.int8), np.zeros(shape, np.int8)
    mean, residual = canvas[None].astype(np.int32), np.zeros((1, len(canvas)), np.int32)
    unit = np.full((1, len(canvas)), 2, np.int32)
    own = np.zeros((1, 2 * len(canvas)), np.int8)
    place = (0, 0, 1, 1, 1, 1)
    if name == "passes":
        passes.absorb(mean, residual, place, 0, (unit, 1), y_hat, seen, sizes, own)
    else:
        outputs = [torch.from_numpy(a) for a in (y_hat, seen, sizes, own)]
        device_passes.absorb(*as_tensors((mean, residual, place, 0, (unit, 1))), *outputs)
    assert seen.ravel().tolist() == canvas.tolist()
    assert sizes.ravel().tolist() == wanted
    assert own.ravel().tolist() == [*canvas.tolist(), *wanted]


def test_split_latents(draw: Draw) -> None:
    y_hat, scale = draw("int32", (1 << 20) + 15, N, 6, M), draw.scale(N, M)
    high, low = filled("int8", N * 6, M), filled("int8", N * 6, M)
    agree("split_latents", y_hat, scale, STREAM_TOP, high, low)
    assert np.abs(256 * high.astype(int) + low).max() <= STREAM_TOP


def test_split_stream_gives_both_halves() -> None:
    x = np.arange(-STREAM_TOP, STREAM_TOP + 1, dtype=np.int16)[:, None]
    high, low = filled("int8", len(x), 1), filled("int8", len(x), 1)
    agree("split_stream", x, STREAM_TOP, high, low)
    assert np.array_equal(256 * high.astype(int) + low, x)


def edge_sums(draw: Draw, rows: int, outputs: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """As large as a weight of two halves may make them."""
    return draw.sums(1 << 20, rows, 2 * outputs), draw.sums(1 << 20, rows, 2 * outputs)


@pytest.mark.parametrize("sizes", [1, N])
@pytest.mark.parametrize("first", [0, 5])
def test_begin_stream(draw: Draw, sizes: int, first: int) -> None:
    positions = 6
    rows = N * positions - first
    static, level = (draw("int32", LIMIT_OF_SUMMANDS, *shape, C) for shape in ((sizes, positions), (N,)))
    scale = draw.scale(C, top=EDGE_MANTISSA_TOP)
    agree("begin_stream", *edge_sums(draw, rows, C), first, scale, static, level, STREAM_TOP, filled("int16", rows, C))


def test_depthwise(draw: Draw) -> None:
    x, taps = draw("int16", STREAM_TOP, N, *GRID, C), draw("int16", (1 << 14) // 9, 9, C)
    bias, scale = draw("int32", BIAS_TOP, C), draw.scale(C)
    agree("depthwise", x, taps, bias, scale, filled("int8", N, *GRID, C))


def test_gate(draw: Draw) -> None:
    sums, bias = draw.sums(SUM_TOP, 9, 2 * C), draw("int32", BIAS_TOP, 2 * C)
    scales = draw.scale(2 * C), GATE_TOP, draw.scale(C)
    agree("gate", sums, bias, *scales, filled("int8", 9, C))


def test_add_to_stream(draw: Draw) -> None:
    sums, bias, x = draw.sums(SUM_TOP, 9, C), draw("int32", BIAS_TOP, C), draw("int16", STREAM_TOP, 9, C)
    agree("add_to_stream", sums, bias, draw.scale(C), STREAM_TOP, x)


@pytest.mark.parametrize("name", ["to_colour", "to_grey"])
@pytest.mark.parametrize("first", [0, 5])
def test_pixels(draw: Draw, name: str, first: int) -> None:
    h, w = 2, 3
    rows = N * h * w - first
    bias = draw("int64", (1 << 36) - 1, 192)
    scale = draw.scale(192, top=EDGE_MANTISSA_TOP)
    out = filled("uint8", N, 8 * h, 8 * w, *((3,) if name == "to_colour" else ()))
    agree(name, *edge_sums(draw, rows, 192), first, bias, scale, (h, w), out)


def test_every_pass_is_held_against_its_twin() -> None:
    ours = {name for name, value in vars(passes).items() if hasattr(value, "py_func") and name[0] != "_"}
    assert ours == {name for name, value in vars(device_passes).items() if callable(value) and name[0].islower()}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert ours - tested == {"to_colour", "to_grey", "split_stream"}
