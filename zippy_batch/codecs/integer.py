"""The border between floats and integers: layers whose result is exact on every machine.

An entropy decoder must compute the very probabilities that the encoder used. Sums of floats differ in their last bit
with the device, the thread count and the batch size; sums of integers do not. The layers here hold integers in
float32 containers, so that they run as ordinary matrix products, and every partial sum is proved to stay below 2^24,
up to which float32 represents every integer: whatever order a library adds in, with or without fused multiply-add, no
rounding happens.

    integers in -> sum of weights * inputs + bias  (|any partial sum| < 2^24, `prove`)
                -> floor(sum * 2^-shift + 1/2), clamped           (`rescale`)

Source: Balle, Johnston, Minnen 2019, "Integer networks for data compression with latent-variable models" (ICLR).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]
"""A model file's arrays by name."""

FLOAT32_EXACT = 1 << 24
"""float32 represents every integer of magnitude up to this."""


@dataclass(frozen=True)
class IntegerSum:
    """sum over named inputs of weight @ input, plus bias: one layer's accumulator.

    weights[name] is (outputs, inputs) and bias (outputs,), float32 tensors that hold integers; shift (outputs,) is
    the power of two that `rescale` divides by.
    """

    weights: Mapping[str, Tensor]
    bias: Tensor
    factor: Tensor
    """(outputs,) 2^-shift, exact in float32."""

    def accumulate(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """inputs[name] (..., inputs) -> (..., outputs), exact."""
        total = self.bias
        for name, value in inputs.items():
            total = total + torch.nn.functional.linear(value, self.weights[name])
        return total

    def rescale(self, accumulated: Tensor, low: float, high: float) -> Tensor:
        """floor(accumulated * 2^-shift + 1/2), clamped to low..high."""
        return accumulated.mul(self.factor).add_(0.5).floor_().clamp_(low, high)

    def joined(self, first: str, second: str) -> IntegerSum:
        """The same sum with two of its inputs side by side as one, under the first one's name."""
        weights = dict(self.weights)
        weights[first] = torch.cat([weights[first], weights.pop(second)], 1)
        return IntegerSum(weights, self.bias, self.factor)

    def to(self, device: torch.device) -> IntegerSum:
        moved = {k: v.to(device) for k, v in self.weights.items()}
        return IntegerSum(moved, self.bias.to(device), self.factor.to(device))


@dataclass(frozen=True)
class RoundedSum:
    """An `IntegerSum` divided by its powers of two, with the half that rounding needs: `settle` is all that is left.

    Sums are multiples of 2^-shift instead of integers, exact in float32 by the same proof, and cost two passes over
    memory less.
    """

    weights: Mapping[str, Tensor]
    bias: Tensor

    @staticmethod
    def of(layer: IntegerSum, half: float = 0.5) -> RoundedSum:
        """half: 0 for a summand of a sum that has it already."""
        weights = {k: w * layer.factor[:, None] for k, w in layer.weights.items()}
        return RoundedSum(weights, layer.bias * layer.factor + half)

    def accumulate(self, name: str, value: Tensor) -> Tensor:
        """value (..., inputs) -> (..., outputs): bias and one summand; others are added to it."""
        return torch.nn.functional.linear(value, self.weights[name], self.bias)

    @staticmethod
    def settle(accumulated: Tensor, low: float, high: float) -> Tensor:
        """The integers, clamped to low..high; overwrites what is given."""
        return accumulated.floor_().clamp_(low, high)

    def to(self, device: torch.device) -> RoundedSum:
        return RoundedSum({k: v.to(device) for k, v in self.weights.items()}, self.bias.to(device))


def bound(
    weights: Mapping[str, NDArray[np.int64]], bias: NDArray[np.int64], limits: Mapping[str, int]
) -> NDArray[np.int64]:
    """(outputs,) largest magnitude of any partial sum when |inputs[name]| <= limits[name]."""
    total: NDArray[np.int64] = np.abs(bias)
    for name, weight in weights.items():
        total = total + np.abs(weight).sum(1) * limits[name]
    return total


_bounds: ContextVar[dict[str, int] | None] = ContextVar("_bounds", default=None)


@contextlib.contextmanager
def recording_bounds() -> Iterator[dict[str, int]]:
    """Collects what `prove` finds inside: the largest magnitude that any sum of each layer may reach."""
    found: dict[str, int] = {}
    token = _bounds.set(found)
    try:
        yield found
    finally:
        _bounds.reset(token)


def record_bound(name: str, largest: int) -> None:
    """Note the largest magnitude that a layer's sums may reach, for whoever is `recording_bounds`."""
    recorded = _bounds.get()
    if recorded is not None:
        recorded[name] = max(recorded.get(name, 0), largest)


def prove(
    name: str,
    weights: Mapping[str, NDArray[np.integer]],
    bias: NDArray[np.integer],
    shift: NDArray[np.integer],
    limits: Mapping[str, int],
) -> IntegerSum:
    """An `IntegerSum` whose exactness is proved for inputs within limits; ModelError where it cannot be.

    Shifts are 1..22: the 2^(shift - 1) that rounding adds is part of the bound, and the half that a shift of 0 would
    add is no integer.
    """
    wide = {k: np.asarray(w, np.int64) for k, w in weights.items()}
    shift = np.asarray(shift, np.int64)
    if len(shift) and not (shift.min() >= 1 and shift.max() <= 22):
        raise ModelError(f"layer {name}: shifts must be 1..22, found {shift.min()}..{shift.max()}")
    largest = bound(wide, np.asarray(bias, np.int64), limits) + (1 << shift)
    if len(largest) and largest.max() >= FLOAT32_EXACT:
        raise ModelError(
            f"layer {name} is not exact: a sum may reach {largest.max()}, and float32 is exact below {FLOAT32_EXACT}"
        )
    record_bound(name, int(largest.max(initial=0)))
    tensors = {k: torch.from_numpy(w.astype(np.float32)) for k, w in wide.items()}
    factor = torch.from_numpy(np.exp2(-shift.astype(np.float64)).astype(np.float32))
    return IntegerSum(tensors, torch.from_numpy(np.asarray(bias, np.float32)), factor)


def fetch(arrays: Arrays, name: str, kind: str, *shape: int) -> NDArray[Any]:
    """The named array; ModelError where it is missing or has another type or shape."""
    if name not in arrays:
        raise ModelError(f"model: array {name} is missing")
    array = arrays[name]
    if array.dtype != np.dtype(kind) or array.shape != shape:
        raise ModelError(f"model: array {name} is {array.dtype} {array.shape}, expected {kind} {shape}")
    return array


def fetch_within(arrays: Arrays, name: str, kind: str, limit: int, *shape: int) -> NDArray[Any]:
    """As `fetch`; ModelError also where a value lies beyond +-limit."""
    array = fetch(arrays, name, kind, *shape)
    if array.size and max(int(array.max()), -int(array.min())) > limit:
        raise ModelError(f"model: {name} must be within +-{limit}, found {array.min()}..{array.max()}")
    return array


def load_layer(arrays: Arrays, name: str, outputs: int, inputs: int, limit: int) -> IntegerSum:
    """The named layer (weight int16, bias int32, shift int8), proved for inputs within +-limit."""
    weight = fetch(arrays, f"{name}.weight", "int16", outputs, inputs)
    bias, shift = fetch(arrays, f"{name}.bias", "int32", outputs), fetch(arrays, f"{name}.shift", "int8", outputs)
    return prove(name, {"a": weight}, bias, shift, {"a": limit})


def quantise_rows(
    weights: Mapping[str, NDArray[np.float64]], bias: NDArray[np.float64], limits: Mapping[str, int], most: int = 20
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64], NDArray[np.int64]]:
    """Real-valued rows -> integer weights, bias and per-row exponent k (real ~ integer * 2^-k), as fine as exactness
    allows.

    `most` caps k; weights are kept within int16.
    """
    outputs = len(bias)
    exponent = np.full(outputs, most, np.int64)
    for _ in range(most + 24):
        scale = np.exp2(exponent.astype(np.float64))[:, None]
        rounded = {k: np.rint(w * scale).astype(np.int64) for k, w in weights.items()}
        offset = np.rint(bias * scale[:, 0]).astype(np.int64)
        too_wide = bound(rounded, offset, limits) >= FLOAT32_EXACT - (FLOAT32_EXACT >> 3)
        for w in rounded.values():
            if w.shape[1]:
                too_wide |= np.abs(w).max(1) > 32767
        if not too_wide.any():
            return rounded, offset, exponent
        exponent = exponent - too_wide
    raise ModelError("weights too large to be represented as exact integers")


def probe(device: torch.device) -> None:
    """Compare products on this device with exact ones; ModelError where they differ.

    The proof holds for float32 arithmetic. Libraries can be told from outside, by environment variables, to compute
    float32 products with fewer bits, and then it does not hold.
    """
    rng = np.random.default_rng(0)
    # many small products, and a few of odd numbers that need more bits than formats of reduced precision keep
    x, weight = rng.integers(-511, 512, (64, 1024)), rng.integers(-31, 32, (160, 1024))
    few = np.where(np.arange(1024) % 256 == np.arange(64)[:, None], rng.integers(-127, 128, (64, 1024)) * 2 + 1, 0)
    odd = rng.integers(-8192, 8192, (160, 1024)) * 2 + 1
    for inputs, matrix, shift in ((x, weight, 0), (few, odd, 9)):
        with exact_products(device):
            a = torch.from_numpy(inputs.astype(np.float32)).to(device)
            w = torch.from_numpy((matrix * 2.0**-shift).astype(np.float32)).to(device)
            got = torch.nn.functional.linear(a, w).cpu().numpy().astype(np.float64) * 2.0**shift
        # float64 is exact for whole numbers below 2^53, and NumPy's own products of integers are slow
        if not np.array_equal(got, inputs.astype(np.float64) @ matrix.T.astype(np.float64)):
            raise ModelError(
                f"float32 products on {device} are not exact, so nothing can be coded or decoded there; look for "
                f"settings that lower their precision (such as ONEDNN_DEFAULT_FPMATH_MODE), or use another device"
            )


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Reduced-precision modes (autocast, TF32, bfloat16 inside float32 products) off, whatever the caller switched
    on.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError as error:
        raise ModelError(
            "PyTorch's old and new settings of float32 precision are mixed in this process, so that it cannot be told "
            "how exact its products are; leave one of the two alone"
        ) from error
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on processors with bfloat16 dot products, else float32."""
    if device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16
    return torch.float32
