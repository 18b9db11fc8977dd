"""The exact codec's training: bits of JPEG coefficients, over many sizes, samplings and quantisation tables.

The loss of a batch is its bits per block of the first component.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.errors import UsageError
from zippy_batch.exact.blocks import ROLES, planes_of
from zippy_batch.exact.export import model_arrays
from zippy_batch.exact.network import CONTEXT_PLANES, Architecture, Network, Seen
from zippy_batch.latent.features import ONE
from zippy_batch.training.coefficients import CoefficientPool
from zippy_batch.training.run import Score
from zippy_batch.weights import serialise

MIN_IMAGES = 8
"""Below this there is nothing to train on."""
HELD_OUT = 64
"""Images of the larger pools that are kept for the log, at most a quarter of a pool."""
POSITIONS = 2400
"""8x8 blocks of the first component per step."""
_LOSS_SCALE = 0.1


def bits_of(network: Network, pool: CoefficientPool, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
    """Bits of some images of a pool, by plane: (n, 1 + groups), ends first."""
    n, device = len(numbers), next(network.parameters()).device
    blocks = planes_of([pool.frame(i) for i in numbers])
    seen: dict[str, Tensor] = {}
    bits: dict[str, Tensor] = {}
    for name in blocks:
        component = ROLES.index(name)
        c = torch.from_numpy(pool.coefficients[component][numbers].astype(np.float32)).to(device)
        steps = torch.from_numpy(pool.tables[component][numbers].astype(np.float32)).to(device)
        layout = blocks[name]
        features = torch.from_numpy(layout.features[layout.feature_row]).to(device)
        static = features.view(n, -1, features.shape[1]) / ONE
        places = {k: torch.from_numpy(layout.places[k]).to(device) for k in CONTEXT_PLANES[name] if k in seen}
        before = [seen[k].flatten(0, 1)[at].view(n, c.shape[1] * c.shape[2], -1) for k, at in places.items()]
        own = Seen.of(c, steps)
        bits[name] = network.planes[name](own, c, steps, static, before)
        seen[name] = own.whole().flatten(1, 2)
    return bits


class ExactTask:
    """Training of one network on pools of coefficients (`run.Task`)."""

    def __init__(self, network: Network, pools: Sequence[CoefficientPool], positions: int = POSITIONS) -> None:
        if sum(map(len, pools)) < MIN_IMAGES:
            raise UsageError(f"{sum(map(len, pools))} JPEG images to train on, need {MIN_IMAGES}")
        self.network = network
        self._pools = list(pools)
        self._positions = positions
        weights = np.array([pool.weight for pool in pools])
        self._weights = weights / weights.sum()
        self._held = [min(HELD_OUT, len(pool) // 4) for pool in pools]

    def card(self) -> dict[str, Any]:
        return self.network.architecture.to_dict()

    def is_hidden(self, name: str) -> bool:
        return any(part in name for part in ("hidden", "taps"))

    def loss(self, rng: np.random.Generator) -> Tensor:
        which = int(rng.choice(len(self._pools), p=self._weights))
        pool, most = self._pools[which], len(self._pools[which]) - self._held[which]
        numbers = rng.integers(0, most, min(most, max(1, self._positions // pool.blocks)))
        bits = bits_of(self.network, pool, numbers)
        total = torch.stack([plane.sum() for plane in bits.values()]).sum()
        return _LOSS_SCALE * total / (len(numbers) * pool.blocks)

    def evaluate(self, network: Network) -> Score:
        """Bytes per image of the pools that training draws from most."""
        shown, loss, share = [], 0.0, 0.0
        for which in np.argsort(-self._weights, kind="stable")[:6]:
            pool, held = self._pools[which], self._held[which]
            if not held:
                continue
            total = 0.0
            for numbers in np.array_split(np.arange(len(pool) - held, len(pool)), -(-held * pool.blocks // 8192)):
                total += sum(plane.sum().item() for plane in bits_of(network, pool, numbers).values())
            loss += self._weights[which] * _LOSS_SCALE * total / (held * pool.blocks)
            share += self._weights[which]
            height, width, parts = pool.geometry
            shown.append(f"{height}x{width}/{len(parts)}: {total / held / 8:.1f} B")
        return Score(float(loss / max(share, 1e-9)), "  ".join(shown))


def set_units(network: Network, pools: Sequence[CoefficientPool]) -> None:
    """A new network's unit for each coefficient: its mean size in these pools, to a power of two."""
    for name in CONTEXT_PLANES:
        k, total, count = ROLES.index(name), np.zeros(64), 0.0
        for pool in pools:
            if len(pool.tables) > k:
                some = pool.coefficients[k][:200].astype(np.float64) * pool.tables[k][:200, None, None]
                total += pool.weight * np.abs(some).mean((0, 1, 2))
                count += pool.weight
        unit = np.exp2(np.rint(np.log2(np.clip(total / max(count, 1e-9), 1, 1024))))
        network.planes[name].unit.copy_(torch.from_numpy(unit))  # type: ignore[operator]


def export(network: Network, card: dict[str, Any]) -> bytes:
    """A network -> the bytes of a model file."""
    return serialise(
        model_arrays(network.cpu()), {**card, "codec": "exact", "architecture": network.architecture.to_dict()}
    )


def new_network(pools: Sequence[CoefficientPool]) -> Network:
    """Its units fit what the pools hold."""
    network = Network(Architecture())
    set_units(network, pools)
    return network


def build(card: dict[str, Any]) -> Network:
    """The network of a checkpoint's card, not trained."""
    return Network(Architecture.from_dict(card))
