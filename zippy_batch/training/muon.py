"""The Muon optimiser in a precision of choice.

`torch.optim.Muon` orthogonalises in bfloat16, which a processor without bfloat16 instructions emulates: a step of our
networks took five times as long as their forward and backward pass. In float32, with equal matrices in one product, it
takes a quarter of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.05


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every matrix is orthogonalised by Newton-Schulz iterations.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, params: Iterable[Tensor], lr: float, precision: torch.dtype = torch.float32) -> None:
        super().__init__(params, {"lr": lr, "momentum": _MOMENTUM, "weight_decay": _WEIGHT_DECAY})
        self._precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                alike[tuple(p.shape)].append((p, p.grad.lerp(state["momentum"], group["momentum"])))
            for (outputs, inputs), some in alike.items():
                rate = group["lr"] * max(1.0, outputs / inputs) ** 0.5
                updates = _orthogonalise(torch.stack([update for _, update in some]), self._precision)
                for (p, _), update in zip(some, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def _orthogonalise(x: Tensor, precision: torch.dtype) -> Tensor:
    """(K, outputs, inputs) -> float32 matrices with the same singular vectors and singular values near 1."""
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(precision)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if is_tall else x).float()
