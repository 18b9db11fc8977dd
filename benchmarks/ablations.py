"""What each part of the lossy codec's network gives: variants trained alike from nothing, in floats.

    python benchmarks/ablations.py TRAIN FACES [--size 42] [--steps 400] [--only NAME,...] [--from MODEL] [--json FILE]

TRAIN is a directory of photographs that thumbnails of --size are shrunk from; FACES are thumbnails that nothing is
trained on. Each variant takes the same batches in the same order for --steps steps, its learning rates falling to zero
over the last half, and is then scored on FACES at five qualities with real rounding. Bytes are ideal code lengths; a
ratio below 1 means that the variant needs fewer than the base at equal PSNR. Cost is multiplications and additions per
8x8 block, of the analysis, of the context (which both sides run) and of the synthesis.

So short a training favours what learns fast over what ends well. With --from variants begin with the weights of a
trained model, as far as they have its layers, at a third of the learning rates: what an addition gives in the end, not
what it gives at first. The last rows need no training and are of the shipped
model: its context with weights and activations of fewer bits than its integers have.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zippy_batch.codecs.latent import network as lossy
from zippy_batch.codecs.latent.features import SPATIAL_FEATURES
from zippy_batch.codecs.latent.network import GroupLayers, LatentArchitecture, LatentNetwork
from zippy_batch.codecs.latent.order import VISIT_KINDS, Visit
from zippy_batch.codecs.latent.rounding import round_weights
from zippy_batch.codecs.model_file import load_model
from zippy_batch.compare.curves import Point, mean_ratio
from zippy_batch.sources.directory import list_files
from zippy_batch.training.latent import LatentTask, evaluate
from zippy_batch.training.muon import Muon
from zippy_batch.training.pictures import build_pools, chosen_specs
from zippy_batch.training.warm_start import latent_network

QUALITIES = (20, 40, 60, 75, 85)
POSITIONS = 1728
"""8x8 blocks per step; 48 thumbnails of 42x42."""
_POSITION = slice(0, 64)
_SIZE = slice(66, 72)
"""Among the spatial features (`codecs/latent/features.py`)."""


@dataclass(frozen=True)
class Result:
    name: str
    ratio: float | None
    """Bytes of the base at equal PSNR."""
    analysis_kmac: float
    context_kmac: float
    synthesis_kmac: float
    step_ms: float
    points: list[Point]


# ---- variants that are more than other sizes ----


class Blind(LatentNetwork):
    """Sees zeros for some of the spatial features."""

    def __init__(self, a: LatentArchitecture, hidden: slice) -> None:
        super().__init__(a)
        self._hidden = hidden

    def forward(self, x: Tensor, spatial: Tensor, level: Tensor, noise: bool = True) -> tuple[Tensor, Tensor]:
        spatial = spatial.clone()
        spatial[..., self._hidden] = 0
        return super().forward(x, spatial, level, noise)


class WithHyperprior(LatentNetwork):
    """A side stream of 16 channels per 2x2 blocks that the context sees (Balle et al. 2018, arXiv:1802.01436)."""

    CHANNELS = 16

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__(a)
        self.analyse = nn.Sequential(nn.Linear(a.latents, 64), nn.ReLU(), nn.Linear(64, self.CHANNELS))
        self.spread = nn.Linear(self.CHANNELS, a.context_width)
        self.log_sigma = nn.Parameter(torch.zeros(self.CHANNELS))
        self._side: Tensor | None = None
        for name in VISIT_KINDS:
            kind = self.context.kind(name)
            kind.shared = partial(self._with_side, kind.shared)  # type: ignore[method-assign]

    def _with_side(
        self, shared: Callable[..., Tensor], visit: Visit, canvas: Tensor, spatial: Tensor, level: Tensor
    ) -> Tensor:
        assert self._side is not None
        return shared(visit, canvas, spatial, level) + self._side[:, visit.rows, visit.columns]

    def code(
        self, y: Tensor, gain: Tensor, spatial: Tensor, level: Tensor, rounding: lossy.Rounding = lossy.nearest
    ) -> tuple[Tensor, Tensor]:
        h, w = y.shape[1:3]
        natural = (y / (gain * self.context.unit)).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(F.pad(natural, (0, w % 2, 0, h % 2), mode="replicate"), 2).permute(0, 2, 3, 1)
        z = self.analyse(pooled)
        known, coded = rounding(z)
        bits = lossy.gaussian_bits(coded, self.log_sigma.exp()).sum((1, 2, 3))
        side = self.spread(known).repeat_interleave(2, 1).repeat_interleave(2, 2)
        self._side = side[:, :h, :w]
        y_hat, more = super().code(y, gain, spatial, level, rounding)
        return y_hat, bits + more


class WithMixtures(LatentNetwork):
    """Mixtures of two Gaussians instead of one; symbols are counted from the first one's mean."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__(a)
        self.more = nn.ModuleList()
        self._second: list[tuple[Tensor, ...]] = []
        """Of each group in turn: shift, stretch and share of the second Gaussian."""
        for name in VISIT_KINDS:
            for step, size in zip(self.context.kind(name).steps, a.groups, strict=True):
                assert isinstance(step, GroupLayers)
                layer = nn.Linear(a.context_width, 3 * size)
                nn.init.normal_(layer.weight, 0, 0.003)
                nn.init.zeros_(layer.bias)
                self.more.append(layer)
                step.second.register_forward_hook(partial(self._keep, layer))

    def _keep(self, layer: nn.Linear, module: nn.Module, inputs: Any, hidden: Tensor) -> None:
        self._second.append(tuple(part.flatten(1) for part in layer(hidden).chunk(3, -1)))

    @contextmanager
    def _bits_of_two(self) -> Iterator[None]:
        one = lossy.gaussian_bits

        def both(residual: Tensor, sigma: Tensor) -> Tensor:
            shift, stretch, logit = (torch.cat(parts, 1) for parts in zip(*self._second, strict=True))
            share = torch.sigmoid(logit - 2)
            other = residual - shift * sigma * 10
            wide = sigma * torch.exp((stretch * 10 + 1).clamp(-3, 3))
            p = (1 - share) * torch.exp2(-one(residual, sigma)) + share * torch.exp2(-one(other.abs(), wide))
            return -torch.log2(lossy.lower_bound(p, 1e-9))

        lossy.gaussian_bits = both
        self._second.clear()
        try:
            yield
        finally:
            lossy.gaussian_bits = one

    def code(
        self, y: Tensor, gain: Tensor, spatial: Tensor, level: Tensor, rounding: lossy.Rounding = lossy.nearest
    ) -> tuple[Tensor, Tensor]:
        with self._bits_of_two():
            return super().code(y, gain, spatial, level, rounding)


class WithoutNeighbours(LatentNetwork):
    """No position sees another: contexts of its own channels alone."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__(a)
        for name in VISIT_KINDS:
            kind = self.context.kind(name)
            kind.shared = partial(self._alone, kind.shared)  # type: ignore[method-assign]

    @staticmethod
    def _alone(shared: Callable[..., Tensor], visit: Visit, canvas: Tensor, spatial: Tensor, level: Tensor) -> Tensor:
        return shared(visit, torch.zeros_like(canvas), spatial, level)


def without(*parts: str) -> LatentNetwork:
    """Layers of these names, which start at 0, stay so; they still count in the cost."""
    network = LatentNetwork(BASE)
    for name, parameter in network.named_parameters():
        if any(f".{part}." in name for part in parts):
            assert not parameter.any()
            parameter.requires_grad_(False)
    return network


BASE = LatentArchitecture()
VARIANTS: dict[str, Callable[[], LatentNetwork]] = {
    "base: width 192, 4+4 blocks, 128 latents in 4+4+8+16+16+80, context 192": lambda: LatentNetwork(BASE),
    "no sizes in the context": lambda: without("near_sizes", "own_sizes"),
    "near neighbours alone": lambda: without("far"),
    "a hyperprior besides": lambda: WithHyperprior(BASE),
    "mixtures of two": lambda: WithMixtures(BASE),
    "no neighbours": lambda: WithoutNeighbours(BASE),
    "no position": lambda: Blind(BASE, _POSITION),
    "no image size": lambda: Blind(BASE, _SIZE),
    "one group": lambda: LatentNetwork(replace(BASE, groups=(128,))),
    "three groups: 16+32+80": lambda: LatentNetwork(replace(BASE, groups=(16, 32, 80))),
    "context 96": lambda: LatentNetwork(replace(BASE, context_width=96)),
    "context 256": lambda: LatentNetwork(replace(BASE, context_width=256)),
    "96 latents: 4+4+8+16+16+48": lambda: LatentNetwork(replace(BASE, latents=96, groups=(4, 4, 8, 16, 16, 48))),
    "192 latents: 4+4+8+16+32+128": lambda: LatentNetwork(replace(BASE, latents=192, groups=(4, 4, 8, 16, 32, 128))),
    "width 128": lambda: LatentNetwork(replace(BASE, width=128)),
    "width 256": lambda: LatentNetwork(replace(BASE, width=256)),
    "2 blocks of synthesis": lambda: LatentNetwork(replace(BASE, synthesis_blocks=2)),
    "1 block of synthesis": lambda: LatentNetwork(replace(BASE, synthesis_blocks=1)),
    "2+2 blocks": lambda: LatentNetwork(replace(BASE, blocks=2, synthesis_blocks=2)),
    "6+6 blocks": lambda: LatentNetwork(replace(BASE, blocks=6, synthesis_blocks=6)),
}


# ---- training and scoring ----


def trained(network: LatentNetwork, task: LatentTask, steps: int, rate: float = 1.0) -> float:
    """Train in place, at so many times the usual learning rates; ms per step."""
    hidden = [p for name, p in network.named_parameters() if p.ndim == 2 and task.is_hidden(name)]
    ids = {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in ids]
    optimisers: Sequence[tuple[torch.optim.Optimizer, float]] = (
        (torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.98), weight_decay=0.0), rate * 1e-3),
        (Muon(hidden, 0.004), rate * 0.004),
    )
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        for optimiser, most in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = most * factor
        loss = task.loss(rng)
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
    return 1e3 * (time.perf_counter() - begun) / steps


def take_over(network: LatentNetwork, name: str) -> None:
    """The weights of a trained model, where the network has such layers."""
    found, there = latent_network(load_model(name)).state_dict(), network.state_dict()
    same = {key: value for key, value in found.items() if key in there and there[key].shape == value.shape}
    network.load_state_dict(same, strict=False)


def scored(network: LatentNetwork, faces: Any) -> list[Point]:
    height, width = faces.shape[1:3]
    with torch.no_grad():
        rows, _ = evaluate(network.eval(), faces, QUALITIES)
    return [Point(bpp * height * width / 8, psnr) for _, bpp, psnr in rows]


def products(network: LatentNetwork, size: int) -> dict[str, float]:
    """Thousands of multiplications and additions per 8x8 block of an image, by part."""
    blocks = -(-size // 8)
    image = torch.zeros(1, 3, 8 * blocks, 8 * blocks)
    spatial = torch.zeros(1, blocks, blocks, SPATIAL_FEATURES)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image, spatial, torch.zeros(1), noise=False)
    of_modules, name = counter.get_flop_counts(), type(network).__name__
    analysis, synthesis = (sum(of_modules[f"{name}.{part}"].values()) for part in ("analysis", "synthesis"))
    counted = {
        "analysis": analysis,
        "context": counter.get_total_flops() - analysis - synthesis,
        "synthesis": synthesis,
    }
    # a multiplication and an addition are two operations
    return {part: total / 2 / blocks**2 / 1000 for part, total in counted.items()}


# ---- narrow integers ----


def narrow(network: LatentNetwork, weight_bits: int, activation_bits: int, faces: Any) -> LatentNetwork:
    """The network with its context and the blocks of its synthesis rounded to so many bits."""
    for module in network.modules():
        if isinstance(module, lossy.Activation):
            module.levels = module.levels * (2**activation_bits - 1) // lossy.UNSIGNED_TOP
    with torch.no_grad(), network.measuring():
        scored(network, faces)
    round_weights(network, lambda: scored(network, faces), (1 << (weight_bits - 1)) - 1)
    network.quantise_activations()
    return network


def narrow_rows(faces: Any) -> list[tuple[str, float]]:
    """Bytes over those of the floats, at equal symbols but for the rounding of means."""
    shipped = load_model("faces")
    before = scored(latent_network(shipped), faces)
    found = []
    for weights, activations in ((7, 8), (6, 8), (5, 8), (7, 6)):
        network = narrow(latent_network(shipped), weights, activations, faces)
        ratio = mean_ratio(scored(network, faces), before)
        found.append(
            (f"weights of {weights} bits, activations of {activations}", ratio.ratio if ratio else float("nan"))
        )
    return found


def files_of(directory: Path) -> list[Path]:
    return [directory / os.fsdecode(file.path) for file in list_files(directory).files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--size", type=int, default=42, help="of the thumbnails, and of the images in FACES")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", help="names of variants, or beginnings of them, with commas between")
    parser.add_argument("--from", dest="start", metavar="MODEL")
    parser.add_argument("--limit", type=int, default=256, help="of the images in FACES")
    parser.add_argument("--skip-narrow", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    o = parser.parse_args()
    wanted = [name for name in VARIANTS if o.only is None or any(name.startswith(part) for part in o.only.split(","))]
    opened = [Image.open(path).convert("RGB") for path in files_of(o.faces)[: o.limit]]
    faces = np.stack([np.asarray(one) for one in opened if one.size == (o.size, o.size)] or sys.exit("no such images"))
    print(f"{len(faces)} images of {o.size}x{o.size}; {o.steps} steps of {POSITIONS} blocks each", flush=True)
    paths = files_of(o.train)
    specs = chosen_specs({(o.size, o.size): len(paths)}, False, [(o.size, o.size)])
    pools = build_pools(paths, specs, len(os.sched_getaffinity(0)))
    base: list[Point] = []
    results = []
    print(f"  {'':66} {'bytes':>6} {'kMAC per block: analysis, context, synthesis':>46} {'ms/step':>8}")
    for name in wanted:
        torch.manual_seed(0)
        network = VARIANTS[name]()
        if o.start:
            take_over(network, o.start)
        step_ms = trained(network, LatentTask(network, pools, specs, POSITIONS), o.steps, 1 / 3 if o.start else 1.0)
        points = scored(network, faces)
        base = base or points
        found = mean_ratio(points, base)
        cost = products(network, o.size)
        ratio = found.ratio if found else None
        results.append(Result(name, ratio, cost["analysis"], cost["context"], cost["synthesis"], step_ms, points))
        kmac = "".join(f"{value:15.0f}" for value in cost.values())
        print(f"  {name:66} {ratio or float('nan'):6.3f} {kmac:>46} {step_ms:8.0f}", flush=True)
    if not o.skip_narrow:
        print("the shipped model's context, rounded after training:")
        for name, ratio in narrow_rows(faces):
            print(f"  {name:66} {ratio:6.3f}", flush=True)
    if o.json:
        o.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
