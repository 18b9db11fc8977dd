from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zippy_batch.codecs.integer import FLOAT32_EXACT, bound, exact_products, probe, prove, quantise_rows
from zippy_batch.errors import ModelError


def layer(seed: int, outputs: int, inputs: int, limit: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {"a": rng.normal(size=(outputs, inputs)) * np.exp(rng.normal(size=(outputs, 1)))}
    return quantise_rows(weights, rng.normal(size=outputs), {"a": limit})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), inputs=st.integers(1, 300), limit=st.sampled_from([1, 255, 511, 2047, 8191]))
def test_sums_are_exact_at_their_worst_inputs(seed: int, inputs: int, limit: int) -> None:
    weights, bias, _ = layer(seed, 5, inputs, limit)
    proved = prove("layer", weights, bias, np.ones(5, int), {"a": limit})
    worst = limit * np.sign(weights["a"])
    x = np.concatenate([worst, -worst, np.random.default_rng(seed).integers(-limit, limit + 1, (5, inputs))])
    with exact_products(torch.device("cpu")):
        got = proved.accumulate({"a": torch.from_numpy(x.astype(np.float32))}).numpy()
    assert np.array_equal(got.astype(np.int64), x.astype(np.int64) @ weights["a"].T + bias)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(1, 22))
def test_rescale_is_an_arithmetic_shift_with_rounding(seed: int, shift: int) -> None:
    proved = prove("layer", {"a": np.zeros((1, 1), int)}, np.zeros(1, int), np.array([shift]), {"a": 1})
    room = FLOAT32_EXACT - (1 << shift)
    total = np.random.default_rng(seed).integers(-room, room, 1000)
    got = proved.rescale(torch.from_numpy(total.astype(np.float32))[:, None].clone(), -(2.0**25), 2.0**25).numpy()[:, 0]
    assert np.array_equal(got.astype(np.int64), (total + ((1 << shift) >> 1)) >> shift)


def test_a_sum_that_could_round_is_refused() -> None:
    weight = np.full((1, 100), 1000)
    with pytest.raises(ModelError, match="not exact"):
        prove("layer", {"a": weight}, np.zeros(1, int), np.ones(1, int), {"a": 200})


def test_rows_are_quantised_as_finely_as_the_bound_allows() -> None:
    weights, bias, exponent = layer(0, 8, 160, 2047)
    largest = bound(weights, bias, {"a": 2047})
    assert (largest < FLOAT32_EXACT).all()
    at_int16 = np.abs(weights["a"]).max(1) > 32767 // 2
    assert ((largest > FLOAT32_EXACT // 4) | at_int16 | (exponent == 20)).all()


def test_exact_products_switch_reduced_precision_off_and_back_on() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), exact_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_device_whose_products_round_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(torch.device("cpu"))
    exact = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: exact(x.bfloat16(), w.bfloat16()).float())
    with pytest.raises(ModelError, match="not exact"):
        probe(torch.device("cpu"))

    def tf32(x: torch.Tensor) -> torch.Tensor:
        """Ten bits behind the binary point, as tensor cores keep of float32 operands."""
        return (x.view(torch.int32) + (1 << 12) & -(1 << 13)).view(torch.float32)

    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: exact(tf32(x), tf32(w)))
    with pytest.raises(ModelError, match="not exact"):
        probe(torch.device("cpu"))


def test_mixed_settings_of_precision_are_refused() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(ModelError, match="mixed in this process"), exact_products(torch.device("cpu")):
            pass
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
