"""Where the integer networks run: NumPy arrays and compiled passes on the processor, tensors elsewhere."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.int8 import Multiplier, ProductKind, Products, Weight, products
from zippy_batch.codecs.latent import device_passes, passes

Array = Any
"""A NumPy array on the processor, a tensor on another device."""


Scale = tuple[Array, int]
"""Mantissas and the shift of a `Multiplier`, as the passes take it."""


class Backend(Protocol):
    """Memory, products and passes of one device."""

    device: torch.device
    passes: ModuleType

    def empty(self, kind: str, *shape: int) -> Array:
        """An array that is not filled; kind names the dtype."""
        ...

    def zeros(self, kind: str, *shape: int) -> Array: ...

    def put(self, array: NDArray[Any]) -> Array:
        """The array on the device."""
        ...

    def get(self, array: Array) -> NDArray[Any]:
        """The array on the processor."""
        ...

    def from_tensor(self, tensor: torch.Tensor) -> Array:
        """A tensor of the device as the passes take it."""
        ...

    def product(self, x: Array, weight: Weight) -> Array:
        """x (R, inputs) int8 -> (R, outputs) int32, or float32 that hold whole numbers."""
        ...

    def no_sums(self, width: int) -> Array:
        """What `product` gives for no rows."""
        ...


class ProcessorBackend:
    """The processor: compiled passes over NumPy arrays."""

    def __init__(self, kind: ProductKind | None = None) -> None:
        self.device = torch.device("cpu")
        self.passes: ModuleType = passes
        self._products = products(self.device, kind)

    def empty(self, kind: str, *shape: int) -> Array:
        return np.empty(shape, kind)

    def zeros(self, kind: str, *shape: int) -> Array:
        return np.zeros(shape, kind)

    def put(self, array: NDArray[Any]) -> Array:
        return np.ascontiguousarray(array)

    def get(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def from_tensor(self, tensor: torch.Tensor) -> Array:
        return tensor.numpy()

    def product(self, x: Array, weight: Weight) -> Array:
        return self._products(torch.from_numpy(np.ascontiguousarray(x)), weight).numpy()

    def no_sums(self, width: int) -> Array:
        return self.empty(self._products.sums, 0, width)


class TorchBackend:
    """Any device that PyTorch knows, the processor among them: passes of tensor operations."""

    def __init__(self, device: torch.device, kind: ProductKind | None = None) -> None:
        self.device = device
        self.passes: ModuleType = device_passes
        self._products: Products = products(device, kind)

    def empty(self, kind: str, *shape: int) -> Array:
        return torch.empty(shape, dtype=getattr(torch, kind), device=self.device)

    def zeros(self, kind: str, *shape: int) -> Array:
        return torch.zeros(shape, dtype=getattr(torch, kind), device=self.device)

    def put(self, array: NDArray[Any]) -> Array:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def get(self, array: Array) -> NDArray[Any]:
        return array.cpu().numpy()

    def from_tensor(self, tensor: torch.Tensor) -> Array:
        return tensor

    def product(self, x: Array, weight: Weight) -> Array:
        return self._products(x.contiguous(), weight)

    def no_sums(self, width: int) -> Array:
        return self.empty(self._products.sums, 0, width)


def put_scale(backend: Backend, multiplier: Multiplier) -> Scale:
    """The multiplier on the backend's device."""
    return backend.put(multiplier.mantissa), multiplier.shift


def backend_of(device: torch.device, kind: ProductKind | None = None) -> Backend:
    """The backend that is fastest on a device. Raises ModelError where its products are not exact."""
    return ProcessorBackend(kind) if device.type == "cpu" else TorchBackend(device, kind)
