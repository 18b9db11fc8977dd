"""A tiny untrained model: real file, real integer layers, no quality."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from zippy_batch.codecs.exact import export as exact_export
from zippy_batch.codecs.exact import network as exact_network
from zippy_batch.codecs.latent.export import export_arrays
from zippy_batch.codecs.latent.network import LatentArchitecture, LatentNetwork
from zippy_batch.codecs.model_file import Model, model_from_bytes, serialise

TINY = LatentArchitecture(
    width=24, blocks=1, synthesis_blocks=2, latents=24, groups=(8, 16), context_width=16, far_latents=8
)


def tiny_network(seed: int = 0) -> LatentNetwork:
    torch.manual_seed(seed)
    network = LatentNetwork(TINY)
    for parameter in network.context.parameters():  # larger than at the start of training, so that contexts matter
        torch.nn.init.normal_(parameter, 0, 0.15)
    return network


def pictures(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(n, H, W, 3) uint8: smooth colour fields with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = rng.normal(size=(n, 3, 4))
    value = np.stack(
        [np.sin(waves[..., k, None, None] * y + waves[..., (k + 1) % 4, None, None] * x + k) for k in range(4)]
    ).sum(0)
    value = 128 + 40 * value + rng.normal(size=value.shape) * 6
    return value.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@lru_cache
def tiny_model() -> Model:
    arrays = export_arrays(tiny_network(), [pictures(8, 40, 48), pictures(4, 64, 64, 1)])
    return model_from_bytes(serialise(arrays, {"name": "tiny", "architecture": TINY.to_dict()}))


def clamped_model() -> Model:
    """The tiny model with multipliers so large that sums leave every range that they are clamped to."""
    base = tiny_model()
    wide = {
        name: np.minimum(array.astype(np.int64) * 64, (1 << 25) - 1).astype(array.dtype)
        for name, array in base.arrays.items()
        if name.endswith(".mantissa") and not name.endswith((".shared.scale.mantissa", ".own.scale.mantissa"))
    }
    gain = {"gain.analysis": base.arrays["gain.analysis"] * 40}
    return model_from_bytes(serialise({**base.arrays, **wide, **gain}, base.card))


TINY_EXACT = exact_network.ExactArchitecture(
    exact_network.PlaneShape((1, 5, 10, 48), (3, 2, 1, 1), 2, 24, (16, 16)),
    exact_network.PlaneShape((2, 62), (2, 1), 1, 12, (8,)),
)


def tiny_exact_network(seed: int = 0) -> exact_network.ExactNetwork:
    torch.manual_seed(seed)
    network = exact_network.ExactNetwork(TINY_EXACT)
    for plane in network.planes.values():
        plane.unit.copy_(torch.tensor([2.0 ** max(1, 7 - k // 6) for k in range(64)]))  # type: ignore[operator]
        for module in plane.modules():
            if isinstance(module, exact_network.Step):
                torch.nn.init.normal_(module.out.weight, 0, 0.2)  # large enough for contexts to matter
    return network


@lru_cache
def tiny_exact_model() -> Model:
    card = {"name": "tiny-exact", "codec": "exact", "architecture": TINY_EXACT.to_dict()}
    return model_from_bytes(serialise(exact_export.model_arrays(tiny_exact_network()), card))


class Steps:
    """A clock by which each look takes so many seconds: training by it takes as many steps on any machine."""

    def __init__(self, seconds: float = 1 / 30) -> None:
        self.seconds, self.looks = seconds, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * self.seconds
