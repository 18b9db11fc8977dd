"""The float side of the lossy codec: transforms, and the context model as it is trained.

    x -> g_a -> y = gain * analysis -> round(y - mu) -> y_hat -> g_s -> x_hat
                                         ^ mu, sigma: context model

All of it works on the grid of 8x8 blocks: an image is unshuffled into 192 values per block, and every layer is a matrix
product per block or a depthwise 3x3 over blocks. The first and last layers start as an orthonormal DCT in an
orthonormal colour space, so that training starts from a working transform codec and improves it.

Context and synthesis run in integers (`context.py`, `synthesis.py`). After `LatentNetwork.quantise_activations`, the
network rounds its activations as those do and passes gradients straight through, so that training learns to live with
it. Weights are rounded when training is over (`rounding.py`).

Letters: N images, h w grid, C channels, M latent channels. Layout is N h w C throughout.
Sources: Balle et al. 2018 (arXiv:1802.01436) for the loss, Minnen et al. 2018 (arXiv:1809.02736) for contexts,
Li et al. 2023 (arXiv:2302.14402) for the 2x2 parity order, Jacob et al. 2018 (arXiv:1712.05877) for training with
rounded activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zippy_batch.codecs.int8 import WEIGHT_TOP
from zippy_batch.codecs.latent.features import (
    LEVEL_FEATURES,
    LEVEL_KNOTS,
    LEVEL_STEP,
    ONE,
    PATCH,
    SPATIAL_FEATURES,
    grid_size,
)
from zippy_batch.codecs.latent.order import DEPTHS, FAR, NEAR, PARITIES, VISIT_KINDS, Visit, parity_of, visits

SCALE_LEVELS = 64
SIGMA_MIN = 0.11
SIGMA_STEP = 0.1
"""Scale index i stands for sigma = SIGMA_MIN * exp(SIGMA_STEP * i), in quantisation steps."""

SIGNED_TOP = 127
"""Largest magnitude of a signed 8-bit activation."""
UNSIGNED_TOP = 255
"""Largest rectified 8-bit activation; it is stored less 128."""
EDGE_WEIGHT_TOP = 127 * WEIGHT_TOP
"""Largest weight of the first and last layers of the synthesis, whose weights have two 8-bit halves."""


@dataclass(frozen=True)
class LatentArchitecture:
    """Sizes of the networks. A model file carries them; nothing else fixes them."""

    width: int = 192
    blocks: int = 4
    """Of the analysis."""
    synthesis_blocks: int = 4
    latents: int = 128
    groups: tuple[int, ...] = (4, 4, 8, 16, 16, 80)
    """Latent channels coded together at one position; they add up to `latents`."""
    context_width: int = 192
    far_latents: int = 32
    """Channels that the context sees of positions further away."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.blocks, self.synthesis_blocks, self.latents, *self.groups, self.context_width)
        if any(type(size) is not int or not 1 <= size <= 1024 for size in (*sizes, self.far_latents)):
            raise ValueError(f"sizes must be integers from 1 to 1024, found {sizes}")
        if sum(self.groups) != self.latents:
            raise ValueError(f"groups {self.groups} must add up to latents {self.latents}")
        if self.far_latents > self.latents:
            raise ValueError(f"far_latents {self.far_latents} must be at most latents {self.latents}")

    @property
    def starts(self) -> tuple[int, ...]:
        """First channel of each group."""
        return tuple(sum(self.groups[:g]) for g in range(len(self.groups)))

    @property
    def channels(self) -> tuple[slice, ...]:
        """Channels of each group."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.groups, strict=True))

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(card: Any) -> LatentArchitecture:
        """Inverse of `to_dict`, also after JSON; TypeError, ValueError or KeyError on anything else."""
        names = {f.name for f in fields(LatentArchitecture)}
        if set(card) != names:
            raise ValueError(f"expected {', '.join(sorted(names))}")
        return LatentArchitecture(**{**card, "groups": tuple(card["groups"])})


def lambda_of(level: Tensor) -> Tensor:
    """Weight of the distortion (MSE on 0..255, per pixel and channel) against the rate (bits per pixel)."""
    return 3e-4 * torch.exp2(level / LEVEL_STEP)


def _dct_matrix() -> np.ndarray:
    k = np.arange(PATCH)
    d = np.sqrt(2 / PATCH) * np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * PATCH))
    d[0] /= np.sqrt(2)
    return d


def _dct_basis() -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal basis (192 outputs, 192 inputs in unshuffle order) sorted by expected deviation, and that
    deviation.
    """
    colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], float)
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    d = _dct_matrix()
    rows, deviations = [], []
    for c, strength in zip(colour, (1.0, 0.35, 0.25), strict=True):
        for u in range(PATCH):
            for v in range(PATCH):
                rows.append((c[:, None, None] * np.outer(d[u], d[v])[None]).reshape(-1))
                deviations.append(1.2 * strength / (1 + u * u + v * v) ** 0.75)
    order = np.argsort(-np.array(deviations), kind="stable")
    return np.array(rows)[order], np.array(deviations)[order]


def channel_units(latents: int) -> np.ndarray:
    """(latents,) deviation expected of each channel of a network that starts as a DCT."""
    return np.resize(_dct_basis()[1], latents)


def unshuffle(x: Tensor) -> Tensor:
    """(N, 3, 8h, 8w) -> (N, h, w, 192)."""
    return F.pixel_unshuffle(x, PATCH).permute(0, 2, 3, 1)


def shuffle(x: Tensor) -> Tensor:
    """(N, h, w, 192) -> (N, 3, 8h, 8w)."""
    return F.pixel_shuffle(x.permute(0, 3, 1, 2), PATCH)


def to_input(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (N, H, W, 3) -> target (N, 3, H, W) and network input padded by its edge to multiples of 8, in 0..1."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    h, w = x.shape[2:]
    return x, F.pad(x, (0, grid_size(w) * PATCH - w, 0, grid_size(h) * PATCH - h), mode="replicate")


def interpolate_knots(table: Tensor, level: Tensor) -> Tensor:
    """(LEVEL_KNOTS, C) and (N,) levels -> (N, C), linear between knots."""
    position = level / LEVEL_STEP
    i = position.floor().clamp(0, LEVEL_KNOTS - 2).long()
    t = (position - i)[:, None]
    return (1 - t) * table[i] + t * table[i + 1]


# ---- rounding that lets gradients through ----


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounded):  # type: ignore[no-untyped-def]
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of x."""
    out: Tensor = _StraightThrough.apply(x, rounded.detach())
    return out


class Activation(nn.Module):
    """Values that the integer networks keep in 8 bits, each channel with a unit of its own."""

    top: Tensor
    """(C,) what the largest integer stands for; 0 before it is measured."""

    def __init__(self, channels: int, levels: int, low: int) -> None:
        """Integers from low to levels."""
        super().__init__()
        self.register_buffer("top", torch.zeros(channels))
        self.levels, self.low = levels, low
        self.quantised = False
        self.seen: Tensor | None = None
        """(C,) while ranges are being measured: the largest values so far, but for one in a thousand."""

    @property
    def unit(self) -> Tensor:
        """(C,) what an integer 1 stands for."""
        return self.top / self.levels

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            rows = x.detach().abs().flatten(0, -2).float()
            self.seen = torch.maximum(self.seen, rows.topk(1 + len(rows) // 1000, 0).values[-1])
        if not self.quantised:
            return x
        clamped = (x / self.unit).clamp(self.low, self.levels)
        return straight_through(clamped, clamped.round()) * self.unit


def sizes_of(values: Tensor) -> Tensor:
    """Companded magnitudes of the context's values, -1..1 -> 0..1, as the integer table has them.

    The square root spreads small magnitudes, on which scales depend most, over more of the 128 integers.
    """
    smooth = (values.abs() + 1e-4).sqrt()
    table = ((values.detach().abs() * SIGNED_TOP).round() / SIGNED_TOP).sqrt().mul_(SIGNED_TOP).round_() / SIGNED_TOP
    return straight_through(smooth, table)


# ---- layers ----


class Static(nn.Module):
    """Linear map of the static features; spatial ones are shared by a batch, level ones by an image."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.spatial = nn.Linear(SPATIAL_FEATURES, outputs)
        self.level = nn.Linear(LEVEL_FEATURES, outputs, bias=False)
        nn.init.zeros_(self.spatial.weight)
        nn.init.zeros_(self.spatial.bias)
        nn.init.zeros_(self.level.weight)

    def forward(self, spatial: Tensor, level: Tensor) -> Tensor:
        """spatial (N or 1, h, w, F) and level (N, F), floats 0..1 -> (N, h, w, outputs)."""
        return self.spatial(spatial) + self.level(level)[:, None, None]


GATE_LIMIT = 6.0
"""Both halves of a gated layer are clamped here. Photographs hardly reach it; noise and checkerboards would otherwise
grow with every block until they overflow, while so the linear path, a DCT to begin with, carries them.
"""


class Block(nn.Module):
    """Depthwise 3x3 over the grid, then a gated layer (ReGLU, Shazeer 2020, arXiv:2002.05202), added to the input."""

    def __init__(self, width: int, is_integer: bool) -> None:
        """is_integer: whether it runs in integers, as those of the synthesis do."""
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mixed = Activation(width, SIGNED_TOP, -SIGNED_TOP) if is_integer else nn.Identity()
        self.gated = Activation(width, SIGNED_TOP, -SIGNED_TOP) if is_integer else nn.Identity()
        with torch.no_grad():
            cast(Tensor, self.depthwise.bias).zero_()
            self.depthwise.weight.mul_(0.3)
            self.depthwise.weight[:, 0, 1, 1] += 1
            self.project.weight.mul_(0.1)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        u = self.mixed(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        a, b = self.expand(u).clamp_(-GATE_LIMIT, GATE_LIMIT).chunk(2, -1)
        return x + self.project(self.gated(F.relu(a) * b))


class Analysis(nn.Module):
    """g_a: pixels -> latents before the gain."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.first = nn.Linear(3 * PATCH * PATCH, a.width)
        self.static = Static(a.width)
        self.blocks = nn.Sequential(*[Block(a.width, is_integer=False) for _ in range(a.blocks)])
        self.last = nn.Linear(a.width, a.latents)
        basis, deviation = _dct_basis()
        scale = torch.from_numpy(1.5 / np.sqrt(deviation)).float()
        with torch.no_grad():
            n = min(a.width, len(basis))
            self.first.weight.normal_(0, 0.01)
            self.first.weight[:n] = torch.from_numpy(basis).float()[:n] * scale[:n, None]
            self.last.weight.normal_(0, 0.002)
            for i in range(min(n, a.latents)):
                self.last.weight[i, i] = 1 / scale[i]
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, spatial: Tensor, level: Tensor) -> Tensor:
        """Blocks x (N, h, w, 192) in -0.5..0.5, in `unshuffle` order -> (N, h, w, M)."""
        return self.last(self.blocks(self.first(x) + self.static(spatial, level)))


class Synthesis(nn.Module):
    """g_s: latents after the inverse gain -> pixels."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.first = nn.Linear(a.latents, a.width)
        self.static = Static(a.width)
        self.blocks = nn.Sequential(*[Block(a.width, is_integer=True) for _ in range(a.synthesis_blocks)])
        self.last = nn.Linear(a.width, 3 * PATCH * PATCH)
        basis, deviation = _dct_basis()
        scale = torch.from_numpy(1.5 / np.sqrt(deviation)).float()
        with torch.no_grad():
            n = min(a.width, len(basis))
            self.first.weight.normal_(0, 0.01)
            for i in range(min(n, a.latents)):
                self.first.weight[i, i] = scale[i]
            self.last.weight.normal_(0, 0.002)
            self.last.weight[:, :n] = (torch.from_numpy(basis).float()[:n] / scale[:n, None]).T
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.last.bias)

    def forward(self, y: Tensor, spatial: Tensor, level: Tensor) -> Tensor:
        """y (N, h, w, M) -> blocks (N, h, w, 192) around -0.5..0.5, not clamped."""
        return self.last(self.blocks(self.first(y) + self.static(spatial, level)))


def _nothing_yet(inputs: int, outputs: int) -> nn.Linear:
    """A layer without bias that starts at 0, so that it can join a network that was trained without it."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class GroupLayers(nn.Module):
    """Predicts one group of channels from what the kind's positions share and the groups before it."""

    def __init__(self, start: int, size: int, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(start, width) if start else None
        self.own_sizes = _nothing_yet(start, width) if start else None
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 * size)
        self.first = Activation(width, UNSIGNED_TOP, 0)
        self.second = Activation(width, UNSIGNED_TOP, 0)
        nn.init.normal_(self.out.weight, 0, 0.003)
        nn.init.zeros_(self.out.bias)

    def forward(self, shared: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """shared (N, h', w', C), own earlier channels (N, h', w', start) -> mean in unit deviations, and scale in
        scale indices.
        """
        z = shared
        if self.own is not None and self.own_sizes is not None and own is not None:
            z = z + self.own(own) + self.own_sizes(sizes_of(own))
        a = self.first(F.relu(z))
        b = self.second(F.relu(self.hidden(a)))
        mean, scale = self.out(b).chunk(2, -1)
        return mean, scale


_REACH = 3
"""Largest offset of a neighbour."""


class KindLayers(nn.Module):
    """The layers of one kind of positions (`order.VISIT_KINDS`)."""

    def __init__(self, a: LatentArchitecture, kind: str) -> None:
        super().__init__()
        width = a.context_width
        self.parity = parity_of(kind)
        self.static = Static(width)
        nn.init.normal_(self.static.spatial.weight, 0, 0.05)
        nn.init.normal_(self.static.level.weight, 0, 0.05)
        nn.init.normal_(self.static.spatial.bias, 0, 0.3)
        if kind.startswith("coarse"):
            self.depth = nn.Parameter(torch.zeros(DEPTHS, width))
        if self.parity:
            self.near = nn.Linear(len(NEAR[self.parity]) * a.latents, width, bias=False)
            self.near_sizes = _nothing_yet(a.latents, width)
            self.far = _nothing_yet(len(FAR[self.parity]) * a.far_latents, width)
        self.steps = nn.ModuleList(GroupLayers(s, g, width) for s, g in zip(a.starts, a.groups, strict=True))
        self._far_latents = a.far_latents

    def shared(self, visit: Visit, canvas: Tensor, spatial: Tensor, level: Tensor) -> Tensor:
        """What all groups of a visit share: static features and coded neighbours.

        canvas (N, h, w, M) in -1..1, spatial (1, h, w, F), level (N, F) -> (N, h', w', C).
        """
        z = self.static(spatial[:, visit.rows, visit.columns], level)
        if visit.depth is not None:
            z = z + self.depth[visit.depth]
        if self.parity:
            grid = canvas[:, :: visit.spacing, :: visit.spacing]
            near = _neighbours(grid, NEAR[self.parity], self.parity)
            far = _neighbours(grid[..., : self._far_latents], FAR[self.parity], self.parity)
            sizes = _neighbours(sizes_of(grid), NEAR[self.parity], self.parity)
            size = sizes.unflatten(-1, (len(NEAR[self.parity]), -1)).mean(-2)
            size = straight_through(size, (size * SIGNED_TOP + 0.5).floor() / SIGNED_TOP)
            z = z + self.near(near) + self.near_sizes(size) + self.far(far)
        return z


class _Neighbours(torch.autograd.Function):
    """Slices of a padded grid side by side. Its gradient adds them up in one buffer: PyTorch's own makes a grid of
    zeros for every slice, which took a sixth of a training step.
    """

    @staticmethod
    def forward(ctx, grid, offsets, parity):  # type: ignore[no-untyped-def]
        ctx.grid, ctx.offsets, ctx.parity = grid.shape, offsets, parity
        padded = F.pad(grid, (0, 0, _REACH, _REACH + 1, _REACH, _REACH + 1))
        return torch.cat(_slices(padded, grid.shape, offsets, parity), -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        n, h, w, c = ctx.grid
        padded = grad.new_zeros(n, h + 2 * _REACH + 1, w + 2 * _REACH + 1, c)
        slices = _slices(padded, ctx.grid, ctx.offsets, ctx.parity)
        for part, of_part in zip(slices, grad.split(c, -1), strict=True):
            part += of_part
        return padded[:, _REACH : _REACH + h, _REACH : _REACH + w], None, None


def _slices(
    padded: Tensor, shape: Sequence[int], offsets: Sequence[tuple[int, int]], parity: int
) -> tuple[Tensor, ...]:
    """For each offset, what a parity's positions plus the offset see of a padded grid of this shape (N, h, w, C)."""
    i, j = PARITIES[parity]
    h, w = shape[1:3]
    rows, columns = len(range(i, h, 2)), len(range(j, w, 2))
    return tuple(padded[:, _REACH + i + dy :: 2, _REACH + j + dx :: 2][:, :rows, :columns] for dy, dx in offsets)


def _neighbours(grid: Tensor, offsets: Sequence[tuple[int, int]], parity: int) -> Tensor:
    """grid (N, h, w, C) -> values at the parity's positions plus each offset, side by side; 0 outside of the grid."""
    out: Tensor = _Neighbours.apply(grid, offsets, parity)
    return out


class Context(nn.Module):
    """Predicts mean and scale of each latent from those already coded, visit by visit and group by group.

    Works on latents in units of the deviation that each channel is expected to have, so that one network serves all
    levels; means and scales are brought back to quantisation steps with the gain. What it sees of coded latents has
    8 bits, from the start of training on.
    """

    unit: Tensor
    """(M,) deviation that each channel is expected to have."""
    top: Tensor
    """(M,) value, in units, that the largest 8-bit integer stands for."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict({kind.replace(".", "_"): KindLayers(a, kind) for kind in VISIT_KINDS})
        self.register_buffer("unit", torch.from_numpy(channel_units(a.latents)).float())
        self.register_buffer("top", torch.full((a.latents,), 8.0))

    def kind(self, name: str) -> KindLayers:
        return cast(KindLayers, self.kinds[name.replace(".", "_")])


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient still pushes x up from below the bound (CompressAI, Balle)."""

    @staticmethod
    def forward(ctx, x, bound):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    return _LowerBound.apply(x, bound)


def gaussian_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits of integers around zero under a discretised Gaussian of deviation sigma."""
    r = residual.abs()
    inverse = 0.7071067811865476 / sigma
    p = 0.5 * (torch.erf((r + 0.5) * inverse) - torch.erf((r - 0.5) * inverse))
    return -torch.log2(lower_bound(p, 1e-9))


Rounding = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Residuals in steps -> what is decoded in their place, and what their bits are counted of."""


def nearest(residual: Tensor) -> tuple[Tensor, Tensor]:
    """As an encoder rounds, with the gradient of no rounding."""
    rounded = straight_through(residual, residual.round())
    return rounded, rounded


def nearest_with_noise(residual: Tensor) -> tuple[Tensor, Tensor]:
    """As training rounds: bits are counted under uniform noise, which has a gradient (Balle et al. 2018)."""
    return straight_through(residual, residual.round()), residual + torch.rand_like(residual) - 0.5


class LatentNetwork(nn.Module):
    """The lossy codec as it is trained: transforms, gains and context in floats."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.architecture = a
        self.analysis = Analysis(a)
        self.synthesis = Synthesis(a)
        self.context = Context(a)
        # quantisation step that is optimal at high rate for lambda: step^2 = 18 / (ln 2 * lambda * 255^2)
        lam = lambda_of(torch.arange(LEVEL_KNOTS) * float(LEVEL_STEP))
        log_step = 0.5 * torch.log(18 / (math.log(2) * lam * 255**2))
        self.log_gain = nn.Parameter(-log_step[:, None].repeat(1, a.latents))
        self.log_inverse_gain = nn.Parameter(log_step[:, None].repeat(1, a.latents))
        start = (torch.from_numpy(channel_units(a.latents)).float() / SIGMA_MIN).log() / SIGMA_STEP
        self.scale_offset = nn.Parameter(start)

    def quantise_activations(self) -> None:
        """Round activations as the integer networks do, and pass gradients straight through."""
        for activation in self._activations():
            activation.quantised = True

    @property
    def has_units(self) -> bool:
        """Whether the units of 8-bit activations have been measured."""
        return all(bool((activation.top > 0).all()) for activation in self._activations())

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Set the units of all 8-bit activations to what the batches that run inside need."""
        activations = self._activations()
        for activation in activations:
            activation.seen = torch.zeros_like(activation.top)
        yield
        for activation in activations:
            assert activation.seen is not None
            # units that hardly ever speak keep some room
            activation.top.copy_(activation.seen.clamp(min=0.02 * float(activation.seen.max()) + 1e-6))
            activation.seen = None

    def _activations(self) -> list[Activation]:
        return [module for module in self.modules() if isinstance(module, Activation)]

    def code(
        self, y: Tensor, gain: Tensor, spatial: Tensor, level: Tensor, rounding: Rounding = nearest
    ) -> tuple[Tensor, Tensor]:
        """y (N, h, w, M) in steps -> y_hat in steps and bits (N,), with residuals rounded as `rounding` does."""
        context = self.context
        to_canvas = 1 / (gain * context.unit * context.top)
        from_unit = gain * context.unit
        canvas = torch.zeros_like(y)
        y_hat = torch.zeros_like(y)
        counted: list[Tensor] = []
        scales: list[Tensor] = []
        for visit in visits((y.shape[1], y.shape[2])):
            kind = context.kind(visit.kind)
            shared = kind.shared(visit, canvas, spatial, level)
            target = y[:, visit.rows, visit.columns]
            values: list[Tensor] = []
            own: list[Tensor] = []
            for step, channels in zip(kind.steps, self.architecture.channels, strict=True):
                mean, scale = step(shared, torch.cat(own, -1) if own else None)
                mean = mean.float() * from_unit[..., channels]
                rounded, noisy = rounding(target[..., channels] - mean)
                value = mean + rounded
                seen = (value * to_canvas[..., channels]).clamp(-1, 1)
                own.append(straight_through(seen, (seen * SIGNED_TOP).round() / SIGNED_TOP))
                values.append(value)
                counted.append(noisy.flatten(1))
                scales.append(self._scale_index(scale.float(), gain, channels).flatten(1))
            canvas = _filled(canvas, visit, torch.cat(own, -1))
            y_hat = _filled(y_hat, visit, torch.cat(values, -1))
        # all at once: a pass over much takes little longer than one over a group
        index = lower_bound(torch.cat(scales, 1), 0.0).clamp(max=SCALE_LEVELS - 1.0)
        sigma = SIGMA_MIN * torch.exp(SIGMA_STEP * index)
        return y_hat, gaussian_bits(torch.cat(counted, 1), sigma).sum(1)

    def _scale_index(self, scale: Tensor, gain: Tensor, channels: slice) -> Tensor:
        """Scale in unit deviations -> in quantisation steps, both as scale indices."""
        return scale + (gain[..., channels].log() / SIGMA_STEP + self.scale_offset[channels])

    def forward(self, x: Tensor, spatial: Tensor, level: Tensor, noise: bool = True) -> tuple[Tensor, Tensor]:
        """x (N, 3, 8h, 8w) in 0..1, spatial (1, h, w, F) in 0..1, level (N,) -> x_hat and bits (N,)."""
        hats = level_hats(level)
        gain = interpolate_knots(self.log_gain, level).exp()[:, None, None]
        inverse = interpolate_knots(self.log_inverse_gain, level).exp()[:, None, None]
        y = self.analysis(unshuffle(x - 0.5), spatial, hats).float() * gain
        y_hat, bits = self.code(y, gain, spatial, hats, nearest_with_noise if noise else nearest)
        return shuffle(self.synthesis(y_hat * inverse, spatial, hats).float()) + 0.5, bits


def _filled(whole: Tensor, visit: Visit, part: Tensor) -> Tensor:
    whole = whole.clone()
    whole[:, visit.rows, visit.columns] = part
    return whole


def level_hats(level: Tensor) -> Tensor:
    """(N,) float levels -> (N, LEVEL_FEATURES) weights in 0..1 (the float form of `features.level_features`)."""
    knots = torch.arange(LEVEL_KNOTS, device=level.device) * LEVEL_STEP
    return (1 - (level[:, None] - knots).abs() / LEVEL_STEP).clamp(min=0)


def as_float(features: np.ndarray) -> Tensor:
    """Integer features 0..256 -> float32 0..1."""
    return torch.from_numpy(features).float() / ONE
