"""Products of 8-bit integers and the steps between them: the same integers on every machine, device and batch size.

An entropy decoder must compute the very probabilities that the encoder used, and an archive should restore to the same
pixels everywhere. Sums of floats differ in their last bit with the device, the thread count and the batch size; sums of
integers do not.

    int8 activations, int8 weights -> int32 sums                    (`Products`)
    -> (sum * mantissa + 2^(shift-1)) >> shift, in 64 bits, clamped  (`Multiplier`)

Weights have seven bits, |w| <= 64. Processors without dot-product instructions for bytes add pairs of products in 16
bits, and with larger weights PyTorch's int8 product then returns wrong sums without a word. Every sum stays below 2^24
(`Weight.load` proves it), up to which float32 represents every integer: a float32 product of the same numbers gives
the same sums, whatever order it adds in. Three products are tried on each machine, and the fastest exact one is used:
int8 (`torch._int_mm`, for dot-product instructions and GPUs), packed (oneDNN's, of weights laid out beforehand, for
processors with AVX2 alone) and float32.

Source: Balle, Johnston, Minnen 2019, "Integer networks for data compression with latent-variable models" (ICLR); Jacob
et al. 2018 (arXiv:1712.05877) for multiplication and shift.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codecs.integer import FLOAT32_EXACT, Arrays, exact_products, fetch, probe, record_bound
from zippy_batch.errors import ModelError

ProductKind = Literal["int8", "packed", "float32"]

WEIGHT_TOP = 64
INPUT_TOP = 128
"""Largest magnitude of an activation."""
_PROBE = "probe"
"""Name of the matrices of a probe: they say nothing about a model."""
_SLOW_S = 0.01
"""No product that is worth using takes as long in a probe, which every command waits for."""
MANTISSA_TOP = (1 << 30) - 1
SHIFT_TOP = 46
_MULTIPLES = 8
"""CUDA's int8 product wants more than 16 rows, and inputs and outputs in multiples of 8."""
_FEWEST_ROWS = 17
_PACKED_PAYS = 6_000_000
"""Multiplications: a packed product takes a tenth of a millisecond to begin, in which float32 does about so many."""
_ZERO_POINT = 128
"""Packed products take bytes without sign, and what 0 is among them."""


@dataclass(frozen=True)
class Multiplier:
    """x -> (x * mantissa + 2^(shift-1)) >> shift: a positive real factor, rounded, with one shift for all of it.

    mantissa is int32, of any shape; |x| * mantissa stays below 2^62.
    """

    mantissa: NDArray[np.int32]
    shift: int

    @staticmethod
    def of(values: NDArray[np.float64], most: int = MANTISSA_TOP) -> Multiplier:
        """The finest multiplier of real factors; raises ValueError where a factor is not finite or negative."""
        largest = float(np.max(values, initial=0.0))
        if not np.isfinite(largest) or np.min(values, initial=0.0) < 0:
            raise ValueError("factors must be finite and not negative")
        shift = int(np.clip(np.floor(np.log2(most / max(largest, 1e-12))), 1, SHIFT_TOP))
        mantissa = np.rint(values * 2.0**shift)
        if mantissa.max(initial=0) > most:
            raise ValueError(f"factors up to {largest} are too large")
        return Multiplier(mantissa.astype(np.int32), shift)

    @staticmethod
    def load(arrays: Arrays, name: str, *shape: int, most: int = MANTISSA_TOP) -> Multiplier:
        """From a model file's arrays NAME.mantissa (int32) and NAME.shift (int8, one value). Raises ModelError."""
        mantissa = fetch(arrays, f"{name}.mantissa", "int32", *shape)
        shift = int(fetch(arrays, f"{name}.shift", "int8", 1)[0])
        if mantissa.size and not 0 <= mantissa.min() <= mantissa.max() <= most:
            raise ModelError(f"model: {name}.mantissa must be 0..{most}")
        if not 1 <= shift <= SHIFT_TOP:
            raise ModelError(f"model: {name}.shift must be 1..{SHIFT_TOP}, found {shift}")
        return Multiplier(np.ascontiguousarray(mantissa), shift)

    def apply(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the multiplier makes of integers that go with its mantissas."""
        return (x * self.mantissa.astype(np.int64) + (1 << (self.shift - 1))) >> self.shift

    def save(self, name: str) -> dict[str, NDArray[Any]]:
        return {f"{name}.mantissa": self.mantissa, f"{name}.shift": np.array([self.shift], np.int8)}


@dataclass(frozen=True)
class Weight:
    """A matrix (outputs, inputs) of int8, on one device, in the forms that products want."""

    int8: Tensor
    """(inputs, outputs), transposed."""

    @cached_property
    def float32(self) -> Tensor:
        """(outputs, inputs)"""
        return self.int8.t().float()

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """As oneDNN lays it out, and what a 1 and a 0 are worth in each row: 1 and 0."""
        outputs = self.int8.shape[1]
        packed = torch.ops.onednn.qlinear_prepack(self.int8.t().contiguous(), None)
        return packed, torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)

    @staticmethod
    def load(arrays: Arrays, name: str, outputs: int, inputs: int, device: torch.device) -> Weight:
        """The named array, proved to keep all sums exact; ModelError where it does not."""
        return Weight.of(name, fetch(arrays, name, "int8", outputs, inputs), device)

    @staticmethod
    def of(name: str, values: NDArray[np.int8], device: torch.device) -> Weight:
        """Of an array that is already there; raises as `load` does."""
        wide = np.abs(values.astype(np.int64))
        if wide.max(initial=0) > WEIGHT_TOP:
            raise ModelError(f"layer {name} is not exact: weights must be within +-{WEIGHT_TOP}, found {wide.max()}")
        largest = int(wide.sum(1).max(initial=0)) * INPUT_TOP
        if largest >= FLOAT32_EXACT:
            raise ModelError(
                f"layer {name} is not exact: a sum may reach {largest}, and float32 is exact below {FLOAT32_EXACT}"
            )
        if name != _PROBE:
            record_bound(name, largest)
        return Weight(torch.from_numpy(np.ascontiguousarray(values)).to(device).t())

    def sums(self) -> NDArray[np.int64]:
        """(outputs,) sum of each row's weights."""
        return self.int8.cpu().numpy().astype(np.int64).sum(0)

    def largest_sums(self) -> NDArray[np.int64]:
        """(outputs,) largest magnitude of each row's sums, whatever its inputs are."""
        return INPUT_TOP * np.abs(self.int8.cpu().numpy().astype(np.int64)).sum(0)


class Products:
    """x (rows, inputs) int8 times a weight -> (rows, outputs), exact: int32, or float32 that hold whole numbers."""

    def __init__(self, kind: ProductKind) -> None:
        self.kind: ProductKind = kind
        self.sums: Literal["int32", "float32"] = "int32" if kind == "int8" else "float32"
        """dtype of what comes out."""

    def __call__(self, x: Tensor, weight: Weight) -> Tensor:
        if self.kind == "packed" and len(x) * weight.int8.numel() >= _PACKED_PAYS:
            return _packed_product(x, weight)
        if self.kind != "int8":
            return torch.nn.functional.linear(x.float(), weight.float32)
        if x.device.type == "cpu":
            return torch._int_mm(x, weight.int8)
        return _padded_product(x, weight.int8)


def _packed_product(x: Tensor, weight: Weight) -> Tensor:
    """The product that PyTorch's quantised networks use; it gives float32."""
    packed, ones, zeros = weight.packed
    unsigned = x.view(torch.uint8) ^ 0x80
    sums: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, _ZERO_POINT, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return sums


def _padded_product(x: Tensor, weight: Tensor) -> Tensor:
    """As CUDA wants it; zeros that are added change no sum."""
    rows, inputs = x.shape
    outputs = weight.shape[1]
    more_rows = max(0, _FEWEST_ROWS - rows)
    more_inputs, more_outputs = -inputs % _MULTIPLES, -outputs % _MULTIPLES
    if more_rows or more_inputs:
        x = torch.nn.functional.pad(x, (0, more_inputs, 0, more_rows))
    if more_inputs or more_outputs:
        weight = torch.nn.functional.pad(weight, (0, more_outputs, 0, more_inputs))
    return torch._int_mm(x.contiguous(), weight)[:rows, :outputs]


@lru_cache(maxsize=8)
def products(device: torch.device, kind: ProductKind | None = None) -> Products:
    """The product to use on a device: of the kind named, else the fastest that is exact.

    Raises ModelError where float32 products are not exact, or those that were asked for are not.
    """
    probe(device)
    if kind == "float32":
        return Products("float32")
    if kind is not None:
        if not _is_exact(Products(kind), device):
            raise ModelError(f"{kind} products on {device} are not exact; use float32 ones")
        return Products(kind)
    slowest = _seconds(Products("float32"), device)
    others: tuple[ProductKind, ...] = ("int8", "packed") if device.type == "cpu" else ("int8",)
    faster = [(seconds, other) for other in others if (seconds := _seconds(Products(other), device)) < slowest]
    exact = (Products(other) for _, other in sorted(faster) if _is_exact(Products(other), device))
    return next(exact, Products("float32"))


def _is_exact(product: Products, device: torch.device) -> bool:
    """Random and extreme values of all the shapes that occur: few and many rows, short and long sums."""
    rng = np.random.default_rng(0)
    for rows, inputs, outputs in ((1, 8, 8), (7, 192, 160), (300, 896, 192), (33, 1408, 192)):
        signs = rng.integers(0, 2, (outputs, inputs)) * 2 - 1
        # the largest sums there are, some of them odd
        full = np.full_like(signs, WEIGHT_TOP)
        full[::2, 0] -= 1
        x = rng.integers(-128, 128, (rows, inputs))
        x[::3], x[1::3] = 127, -128
        for w in (signs * WEIGHT_TOP, full, rng.integers(-64, 65, (outputs, inputs))):
            weight = Weight.of(_PROBE, w.astype(np.int8), device)
            try:
                with exact_products(device):
                    got = product(torch.from_numpy(x.astype(np.int8)).to(device), weight).cpu().numpy()
            except (RuntimeError, AttributeError):
                return False
            # float64 is exact for whole numbers below 2^53, and NumPy's own products of integers are slow
            wanted = torch.from_numpy(x.astype(np.float64)) @ torch.from_numpy(w.T.astype(np.float64))
            if not np.array_equal(got, wanted.numpy()):
                return False
    return True


def _seconds(product: Products, device: torch.device) -> float:
    """Shortest of some runs of a product of common shape; infinite where a device has no such product."""
    weight = Weight.of(_PROBE, np.ones((192, 384), np.int8), device)
    x = torch.ones(256, 384, dtype=torch.int8, device=device)
    times = []
    try:
        with exact_products(device):
            for _ in range(5):
                begun = time.perf_counter()
                product(x, weight).cpu()
                times.append(time.perf_counter() - begun)
                # the first run may include what a device does once
                if len(times) > 1 and times[-1] > _SLOW_S:
                    break
    except (RuntimeError, AttributeError):
        return float("inf")
    return min(times)


def round_rows(weights: list[NDArray[np.float64]], top: int = WEIGHT_TOP) -> tuple[list[NDArray], NDArray[np.float64]]:
    """Real matrices (outputs, inputs) whose sums are added -> integer ones of at most +-top, and (outputs,) what a 1 is
    worth in each row.
    """
    unit = np.max([np.abs(w).max(1, initial=0.0) for w in weights], axis=0) / top
    unit = np.maximum(unit, 1e-12)
    return [np.rint(w / unit[:, None]).astype(np.int64) for w in weights], unit
