"""The weights of a trained network -> weights that the integer layers have, where sample images lose least.

Rounding each weight by itself costs about 2 % of the bytes. Here the error of each column is made up for in the columns
that are not rounded yet, as far as inputs of the two go together on the samples. What that leaves is a third.

Source: Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained transformers"
(arXiv:2210.17323).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zippy_batch.codecs.int8 import WEIGHT_TOP
from zippy_batch.codecs.latent.network import Activation, Block, GroupLayers, KindLayers, LatentNetwork

_DAMPING = 0.01
"""Share of the mean square of inputs that is added to each: inputs that hardly ever speak must not take all errors."""
_TOGETHER = 64
"""Columns whose errors are handed on one by one; those behind them take the sum."""


@dataclass(frozen=True)
class _SummedLayers:
    """Layers whose results are added, so that each row of all of them shares a unit."""

    layers: tuple[nn.Linear, ...]
    columns: Tensor | None = None
    """(inputs,) what an integer 1 of an input is worth; None where inputs are the same everywhere."""


def round_weights(network: LatentNetwork, run: Callable[[], Any], top: int = WEIGHT_TOP) -> None:
    """Replace the weights of context and synthesis, but for the synthesis's first and last layer, by integers from -top
    to top times the unit of their row: the weights that `int8.round_rows` then finds.

    run: runs the network over sample images. Units of activations must have been measured.
    """
    rows = list(_all_rows(network))
    with ExitStack() as stack, torch.no_grad():
        seen = {layer: _Moments() for some in rows for layer in some.layers}
        for layer, one in seen.items():
            stack.callback(layer.register_forward_pre_hook(one.add).remove)
        run()
    with torch.no_grad():
        for some in rows:
            _round(some, [seen[layer].mean(layer.in_features) for layer in some.layers], top)


def _all_rows(network: LatentNetwork) -> Iterator[_SummedLayers]:
    for module in network.modules():
        if isinstance(module, KindLayers) and module.parity:
            yield _SummedLayers((module.near, module.near_sizes, module.far))
        elif isinstance(module, GroupLayers):
            if module.own is not None and module.own_sizes is not None:
                yield _SummedLayers((module.own, module.own_sizes))
            yield _SummedLayers((module.hidden,), module.first.unit)
            yield _SummedLayers((module.out,), module.second.unit)
        elif isinstance(module, Block) and isinstance(module.mixed, Activation):
            assert isinstance(module.gated, Activation)
            yield _SummedLayers((module.expand,), module.mixed.unit)
            yield _SummedLayers((module.project,), module.gated.unit)


class _Moments:
    """Products of a layer's inputs with each other, added up."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        products = (rows.T @ rows).double()
        self._sum = products if self._sum is None else self._sum + products
        self._count += len(rows)

    def mean(self, inputs: int) -> Tensor:
        """(inputs, inputs); of a layer that never ran, as if inputs were independent."""
        if self._sum is None or not self._sum.any():
            return torch.eye(inputs, dtype=torch.float64)
        return self._sum / self._count


def _round(rows: _SummedLayers, moments: Sequence[Tensor], top: int) -> None:
    columns = rows.columns
    scaled = [layer.weight.double() * (1.0 if columns is None else columns.double()) for layer in rows.layers]
    unit = (torch.cat(scaled, 1).abs().amax(1, keepdim=True) / top).clamp(min=1e-12)
    for layer, weight, products in zip(rows.layers, scaled, moments, strict=True):
        of_integers = products if columns is None else products / (columns[:, None] * columns).double()
        whole = compensated(weight / unit, of_integers, top) * unit
        layer.weight.copy_(whole if columns is None else whole / columns.double())


def compensated(weight: Tensor, moments: Tensor, top: int) -> Tensor:
    """Integers near `weight` (outputs, inputs), of at most +-top, whose results on the samples are near its own.

    moments: (inputs, inputs) mean products of inputs. float64. A weight that is +-top already stays, because a row's
    unit follows from it.
    """
    moments = moments + _DAMPING * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    # inputs that speak loudest first: their errors find the most columns to go to
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = torch.linalg.cholesky(torch.linalg.inv(moments[order][:, order]), upper=True)
    left = weight[:, order].clone()
    is_top = left.abs() > top - 1e-6
    out = torch.empty_like(left)
    for start in range(0, left.shape[1], _TOGETHER):
        part = slice(start, min(start + _TOGETHER, left.shape[1]))
        errors = torch.empty_like(left[:, part])
        for i in range(part.start, part.stop):
            nearest = left[:, i].round().clamp(-top, top)
            out[:, i] = torch.where(is_top[:, i], weight[:, order[i]].round(), nearest)
            errors[:, i - start] = (left[:, i] - out[:, i]) / factor[i, i]
            left[:, i + 1 : part.stop] -= errors[:, i - start, None] * factor[i, i + 1 : part.stop]
        left[:, part.stop :] -= errors @ factor[part, part.stop :]
    return out[:, order.argsort()]
