"""Products of 8-bit integers and what stands between them: exact, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zippy_batch.codecs import int8
from zippy_batch.codecs.int8 import (
    MANTISSA_TOP,
    SHIFT_TOP,
    WEIGHT_TOP,
    Multiplier,
    Weight,
    products,
    round_rows,
)
from zippy_batch.codecs.integer import exact_products
from zippy_batch.errors import ModelError

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-9, 3e8), min_size=1, max_size=9), st.integers(-(1 << 31), 1 << 31))
def test_a_multiplier_is_the_real_factor_rounded(factors: list[float], x: int) -> None:
    scale = Multiplier.of(np.array(factors))
    got = scale.apply(np.full(len(factors), x))
    for factor, mantissa, value in zip(factors, scale.mantissa.tolist(), got.tolist(), strict=True):
        assert abs(mantissa - factor * 2**scale.shift) <= 0.5 + 1e-6
        assert value == (x * mantissa * 2 + (1 << scale.shift)) // (2 << scale.shift)
    assert MANTISSA_TOP // 4 <= scale.mantissa.max() <= MANTISSA_TOP or scale.shift in (1, SHIFT_TOP)


@pytest.mark.parametrize("factors", [[-1.0], [np.nan], [np.inf], [1e10]])
def test_a_factor_that_no_multiplier_stands_for_is_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="factors"):
        Multiplier.of(np.array(factors))


def test_a_multiplier_comes_back_from_a_file() -> None:
    scale = Multiplier.of(np.array([[0.25, 3.0], [0.0, 1e-3]]))
    again = Multiplier.load(scale.save("scale"), "scale", 2, 2)
    assert again.shift == scale.shift
    assert np.array_equal(again.mantissa, scale.mantissa)


@pytest.mark.parametrize(
    ("mantissa", "shift", "message"),
    [
        (-1, 5, r"scale\.mantissa"),
        (MANTISSA_TOP + 1, 5, r"scale\.mantissa"),
        (1, 0, r"scale\.shift"),
        (1, SHIFT_TOP + 1, r"scale\.shift"),
        (1, -128, r"scale\.shift"),
    ],
)
def test_a_multiplier_out_of_bounds_is_refused(mantissa: int, shift: int, message: str) -> None:
    arrays: dict[str, Any] = {
        "scale.mantissa": np.array([mantissa], np.int32),
        "scale.shift": np.array([shift], np.int8),
    }
    with pytest.raises(ModelError, match=message):
        Multiplier.load(arrays, "scale", 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top=st.sampled_from([WEIGHT_TOP, 127 * WEIGHT_TOP]))
def test_rows_are_rounded_to_one_unit_for_all_matrices(seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=(5, k)) * np.exp(rng.normal(size=(5, 1)) * 4) for k in (3, 0, 8)]
    matrices[0][2] = matrices[2][2] = 0
    rounded, unit = round_rows(matrices, top)
    for real, whole in zip(matrices, rounded, strict=True):
        assert np.abs(whole).max(initial=0) <= top
        assert (np.abs(real - whole * unit[:, None]) <= unit[:, None] * 0.5001).all()
    largest = np.max([np.abs(m).max(1, initial=0) for m in rounded], axis=0)
    assert largest.tolist() == [top, top, 0, top, top]


def test_weights_that_some_processors_add_wrongly_are_refused() -> None:
    for value in (65, -65, -128):
        with pytest.raises(ModelError, match=r"layer w is not exact: weights must be within \+-64"):
            Weight.of("w", np.array([[0, value]], np.int8), CPU)
    Weight.of("w", np.array([[64, -64]], np.int8), CPU)


def test_sums_that_float32_would_round_are_refused() -> None:
    at_bound = np.full((1, 2048), 64, np.int8)
    with pytest.raises(ModelError, match=r"may reach 16777216, and float32 is exact below 16777216"):
        Weight.of("w", at_bound, CPU)
    at_bound[0, 0] = 63
    Weight.of("w", at_bound, CPU)


def worst(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> tuple[Any, Any]:
    x = rng.integers(-128, 128, (rows, inputs))
    x[: rows // 2] = rng.choice([-128, 127], (rows // 2, inputs))
    weight = rng.integers(-WEIGHT_TOP, WEIGHT_TOP + 1, (outputs, inputs))
    weight[::2] = WEIGHT_TOP
    return x.astype(np.int8), weight.astype(np.int8)


SHAPES = [(1, 1, 1), (3, 8, 16), (16, 24, 48), (17, 24, 8), (40, 100, 33), (5, 1408, 24), (900, 1407, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["int8", "packed", "float32"])
def test_products_are_those_of_wide_integers(kind: int8.ProductKind, shape: tuple[int, int, int]) -> None:
    x, weight = worst(np.random.default_rng(0), *shape)
    try:
        product = products(CPU, kind)
    except ModelError:
        assert kind != "float32"
        return
    with exact_products(CPU):
        got = product(torch.from_numpy(x), Weight.of("w", weight, CPU)).numpy()
    assert got.dtype == product.sums
    assert np.array_equal(got, x.astype(np.int64) @ weight.astype(np.int64).T)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_that_is_padded_for_a_gpu_is_the_same(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(((a.shape[0], a.shape[1]), (b.shape[0], b.shape[1])))
        return (a.long() @ b.long()).int()

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    x, weight = worst(np.random.default_rng(1), *shape)
    got = int8._padded_product(torch.from_numpy(x), Weight.of("w", weight, CPU).int8).numpy()
    assert np.array_equal(got, x.astype(np.int64) @ weight.astype(np.int64).T)
    # what CUDA's product takes: more than 16 rows, inputs and outputs in multiples of 8
    (((rows, inputs), (same, outputs)),) = seen
    assert rows > 16
    assert inputs == same
    assert inputs % 8 == outputs % 8 == 0


def test_products_that_saturate_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that add pairs of products in 16 bits."""

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = (a.float()[:, :, None] * b.float()).split(2, 1)
        return torch.stack([pair.sum(1).clamp(-8000, 8000) for pair in pairs]).sum(0).int()

    def rounding(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return (x.float() + 128) @ weight.float32.t() - 128 * weight.float32.sum(1)

    products.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(int8, "_packed_product", rounding)
    try:
        for seconds in ({"int8": 1, "packed": 2, "float32": 3}, {"int8": 2, "packed": 1, "float32": 3}):
            monkeypatch.setattr(int8, "_seconds", lambda product, _, seconds=seconds: seconds[product.kind])
            assert products.__wrapped__(CPU).kind == "float32"
        for kind in ("int8", "packed"):
            with pytest.raises(ModelError, match=f"{kind} products on cpu are not exact; use float32"):
                products(CPU, kind)
    finally:
        products.cache_clear()


def test_the_fastest_exact_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_is_exact", lambda product, _: product.kind != "int8")
    for seconds, wanted in (((1, 2, 3), "packed"), ((1, 3, 2), "float32"), ((1, 1, 1), "float32")):
        times = dict(zip(("int8", "packed", "float32"), seconds, strict=True))
        monkeypatch.setattr(int8, "_seconds", lambda product, _, times=times: times[product.kind])
        assert products.__wrapped__(CPU).kind == wanted


def test_a_device_without_products_of_bytes_uses_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise RuntimeError("not implemented")

    products.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", missing)
    monkeypatch.setattr(int8, "_packed_product", missing)
    try:
        assert products(CPU).kind == "float32"
    finally:
        products.cache_clear()
