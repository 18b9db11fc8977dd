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

from zippy_batch.codecs.exact.blocks import ROLES, planes_of
from zippy_batch.codecs.exact.export import model_arrays
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, ExactArchitecture, ExactNetwork, Seen
from zippy_batch.codecs.latent.features import ONE
from zippy_batch.codecs.model_file import serialise
from zippy_batch.errors import UsageError
from zippy_batch.training.coefficients import CoefficientPool
from zippy_batch.training.run import Score

MIN_JPEG_FILES = 8
"""Fewest files that there is anything to train on."""
HELD_OUT = 64
"""Images of a pool that are kept for the log, at most a quarter of it, and of all pools without quarters together;"""
_HELD_OUT_BLOCKS = 1 << 16
"""of large images fewer, and of the pools without quarters every so many is kept whole."""
_OF_SMALL_POOLS = 5
EXACT_POSITIONS = 2400
"""8x8 blocks of the first component per step."""
_SHOWN_POOLS = 6
"""How many are shown of those that training draws from most."""
_LOSS_SCALE = 0.1


def bits_of(network: ExactNetwork, pool: CoefficientPool, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
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

    def __init__(
        self, network: ExactNetwork, pools: Sequence[CoefficientPool], positions: int = EXACT_POSITIONS
    ) -> None:
        if sum(map(len, pools)) < MIN_JPEG_FILES:
            raise UsageError(
                f"{sum(map(len, pools))} JPEG images to train on, need {MIN_JPEG_FILES}: only baseline JPEG files can "
                "be stored exactly; --sizes WIDTHxHEIGHT makes some of any images"
            )
        self.network = network
        self._pools = list(pools)
        self._positions = positions
        self._weights = np.array([pool.weight for pool in pools]) / sum(pool.weight for pool in pools)
        self._held = [min(HELD_OUT, len(pool) // 4, max(1, _HELD_OUT_BLOCKS // pool.blocks)) for pool in pools]
        self._small = _kept_whole(pools)
        for which in self._small:
            self._held[which] = len(pools[which])
        drawn = self._weights * [held < len(pool) for held, pool in zip(self._held, pools, strict=True)]
        self._draws = drawn / drawn.sum()

    def card(self) -> dict[str, Any]:
        return self.network.architecture.to_dict()

    def reach(self, share: float) -> bool:
        """Nothing changes in the course of a run."""
        return False

    def is_hidden(self, name: str) -> bool:
        return any(part in name for part in ("hidden", "taps"))

    def loss(self, rng: np.random.Generator) -> Tensor:
        which = int(rng.choice(len(self._pools), p=self._draws))
        pool, most = self._pools[which], len(self._pools[which]) - self._held[which]
        numbers = rng.integers(0, most, min(most, max(1, self._positions // pool.blocks)))
        bits = bits_of(self.network, pool, numbers)
        total = torch.stack([plane.sum() for plane in bits.values()]).sum()
        return _LOSS_SCALE * total / (len(numbers) * pool.blocks)

    def evaluate(self, network: ExactNetwork) -> Score:
        """Bytes per image of the pools that training draws from most, and of images of rare sizes."""
        larger = [int(i) for i in np.argsort(-self._weights, kind="stable") if 0 < self._held[i] < len(self._pools[i])]
        looks = [(_name(self._pools[i]), [i], self._weights[i]) for i in larger[:_SHOWN_POOLS]]
        if self._small:
            rare = sum(self._weights[i] for i, pool in enumerate(self._pools) if len(pool) < 4)
            looks.append(("rare sizes", self._small, rare))
        shown, loss, share = [], 0.0, 0.0
        for name, pools, weight in looks:
            bits = sum(self._bits_held_out(network, i) for i in pools)
            loss += weight * _LOSS_SCALE * bits / sum(self._held[i] * self._pools[i].blocks for i in pools)
            share += weight
            shown.append(f"{name}: {bits / sum(self._held[i] for i in pools) / 8:.1f} B")
        return Score(float(loss / share), "  ".join(shown))

    def _bits_held_out(self, network: ExactNetwork, which: int) -> float:
        pool, held = self._pools[which], self._held[which]
        parts = min(held, -(-held * pool.blocks // 8192))
        numbers = np.array_split(np.arange(len(pool) - held, len(pool)), parts)
        return sum(plane.sum().item() for some in numbers for plane in bits_of(network, pool, some).values())


def _kept_whole(pools: Sequence[CoefficientPool]) -> list[int]:
    """Numbers of the pools too small to keep a part of that are kept out of training: some of them, where there are
    more, or where nothing else could be."""
    small = [i for i, pool in enumerate(pools) if len(pool) < 4]
    if len(small) < (_OF_SMALL_POOLS if len(small) < len(pools) else 2):
        return []
    kept, blocks = list[int](), 0
    for i in small[::_OF_SMALL_POOLS][:HELD_OUT]:
        blocks += len(pools[i]) * pools[i].blocks
        if kept and blocks > _HELD_OUT_BLOCKS:
            break
        kept.append(i)
    return kept


def _name(pool: CoefficientPool) -> str:
    height, width, parts = pool.geometry
    return f"{height}x{width}/{len(parts)}"


def set_units(network: ExactNetwork, pools: Sequence[CoefficientPool]) -> None:
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


def export(network: ExactNetwork, card: dict[str, Any]) -> bytes:
    """A network -> the bytes of a model file."""
    return serialise(
        model_arrays(network.cpu()), {**card, "codec": "exact", "architecture": network.architecture.to_dict()}
    )


def new_network(pools: Sequence[CoefficientPool]) -> ExactNetwork:
    """Its units fit what the pools hold."""
    network = ExactNetwork(ExactArchitecture())
    set_units(network, pools)
    return network


def build(card: dict[str, Any]) -> ExactNetwork:
    """The network of a checkpoint's card, not trained."""
    return ExactNetwork(ExactArchitecture.from_dict(card))
