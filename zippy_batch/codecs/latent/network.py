"""The float side of the lossy codec: transforms, and the context model as it is trained.

    x -> g_a -> y = gain * analysis -> round(y - mu) -> y_hat -> g_s -> x_hat
                                         ^ mu, sigma: context model (see `context.py` for its integer form)

All of it works on the grid of 8x8 blocks: an image is unshuffled into 192 values per block, and every layer is a matrix
product per block or a depthwise 3x3 over blocks. The first and last layers start as an orthonormal DCT in an
orthonormal colour space, so that training starts from a working transform codec and improves it.

Letters: N images, h w grid, C channels, M latent channels. Layout is N h w C throughout.
Sources: Balle et al. 2018 (arXiv:1802.01436) for the loss, Minnen et al. 2018 (arXiv:1809.02736) for contexts,
Li et al. 2023 (arXiv:2302.14402) for the 2x2 parity order.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zippy_batch.codecs.latent.features import (
    LEVEL_FEATURES,
    LEVEL_KNOTS,
    LEVEL_STEP,
    ONE,
    PATCH,
    SPATIAL_FEATURES,
    grid_size,
)

PARITIES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Order in which the four 2x2 parities (row, column) of the grid are coded."""

NEIGHBOURS: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((0, -1), (0, 1), (-1, 0), (1, 0)),
    ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
)
"""Offsets (row, column) of the already coded neighbours of each parity."""

SCALE_LEVELS = 64
SIGMA_MIN = 0.11
SIGMA_STEP = 0.1
"""Scale index i stands for sigma = SIGMA_MIN * exp(SIGMA_STEP * i), in quantisation steps."""


@dataclass(frozen=True)
class LatentArchitecture:
    """Sizes of the networks. A model file carries them; nothing else fixes them."""

    width: int = 192
    blocks: int = 4
    """Of the analysis."""
    synthesis_blocks: int = 4
    """Fewer make decoding faster."""
    latents: int = 128
    groups: tuple[int, ...] = (16, 32, 80)
    """Latent channels coded together at one parity; they add up to `latents`."""
    context_width: int = 160
    magnitudes: bool = True
    """The context also sees magnitudes: each own channel's, and the sum of the neighbours'. Scales depend on them, and
    a linear layer cannot make them."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.blocks, self.synthesis_blocks, self.latents, *self.groups, self.context_width)
        if any(type(size) is not int or not 1 <= size <= 4096 for size in sizes):
            raise ValueError(f"sizes must be integers from 1 to 4096, found {sizes}")
        if type(self.magnitudes) is not bool:
            raise ValueError(f"magnitudes must be true or false, found {self.magnitudes!r}")
        if sum(self.groups) != self.latents:
            raise ValueError(f"groups {self.groups} must add up to latents {self.latents}")

    def fast(self) -> LatentArchitecture:
        """The form of it that decodes fast: a small synthesis, and a context that takes fewer and narrower steps.

        96 latents are what blocks of 4:2:0 have: 64 coefficients of luma and 16 of each chroma.
        """
        latents = min(self.latents, 96)
        groups = self.groups if self.latents <= 96 else (16, 80)
        narrow = min(self.context_width, 96)
        return replace(self, synthesis_blocks=1, latents=latents, groups=groups, context_width=narrow)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: Any) -> LatentArchitecture:
        """Inverse of `to_dict`, also after JSON; TypeError, ValueError or KeyError on anything else.

        Cards may leave out magnitudes, for none, and synthesis_blocks, for as many as the analysis has.
        """
        left_out = {"magnitudes": False, "synthesis_blocks": fields["blocks"]}
        return LatentArchitecture(**{**left_out, **fields, "groups": tuple(fields["groups"])})


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

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        with torch.no_grad():
            cast(Tensor, self.depthwise.bias).zero_()
            self.depthwise.weight.mul_(0.3)
            self.depthwise.weight[:, 0, 1, 1] += 1
            self.project.weight.mul_(0.1)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        u = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        a, b = self.expand(u).clamp(-GATE_LIMIT, GATE_LIMIT).chunk(2, -1)
        return x + self.project(F.relu(a) * b)


class Analysis(nn.Module):
    """g_a: pixels -> latents before the gain."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.first = nn.Linear(3 * PATCH * PATCH, a.width)
        self.static = Static(a.width)
        self.blocks = nn.Sequential(*[Block(a.width) for _ in range(a.blocks)])
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
        self.blocks = nn.Sequential(*[Block(a.width) for _ in range(a.synthesis_blocks)])
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


class Context(nn.Module):
    """Predicts mean and scale of each latent from those already coded, parity by parity and group by group.

    Works on latents in their natural unit (divided by the gain), so that one network serves all levels; means and
    scales are brought back to quantisation steps with the gain. Rectified linear units only: see `integer.py`.
    """

    unit: Tensor
    """(M,) deviation that each channel is expected to have."""

    def __init__(self, a: LatentArchitecture) -> None:
        super().__init__()
        self.groups = a.groups
        width = a.context_width
        self.static = nn.ModuleList(Static(width) for _ in PARITIES)
        self.neighbours = nn.ModuleList(nn.Linear(max(1, len(n)) * a.latents, width, bias=False) for n in NEIGHBOURS)
        self.neighbours[0] = nn.Identity()
        starts = [sum(a.groups[:g]) for g in range(len(a.groups))]
        if a.magnitudes:
            self.neighbour_sizes = nn.ModuleList(_nothing_yet(a.latents if n else 1, width) for n in NEIGHBOURS)
            self.own_sizes = nn.ModuleList(nn.ModuleList(_nothing_yet(s or 1, width) for s in starts) for _ in PARITIES)
        self.magnitudes = a.magnitudes
        self.own = nn.ModuleList(nn.ModuleList(nn.Linear(s or 1, width) for s in starts) for _ in PARITIES)
        self.hidden = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in starts) for _ in PARITIES)
        self.out = nn.ModuleList(nn.ModuleList(nn.Linear(width, 2 * g) for g in a.groups) for _ in PARITIES)
        self.register_buffer("unit", torch.from_numpy(channel_units(a.latents)).float())
        for own in self.own:
            cast(nn.ModuleList, own)[0] = nn.Identity()
        for k in range(len(PARITIES)):
            static, _ = self.shared_layers(k)
            nn.init.normal_(static.spatial.weight, 0, 0.05)
            nn.init.normal_(static.level.weight, 0, 0.05)
            nn.init.normal_(static.spatial.bias, 0, 0.3)
            for g in range(len(a.groups)):
                out = self.step_layers(k, g)[2]
                nn.init.normal_(out.weight, 0, 0.003)
                nn.init.zeros_(out.bias)

    def shared_layers(self, k: int) -> tuple[Static, nn.Linear | None]:
        """Layers that all groups of parity k share: static features, and neighbours where there are any."""
        return cast(Static, self.static[k]), cast(nn.Linear, self.neighbours[k]) if NEIGHBOURS[k] else None

    def step_layers(self, k: int, g: int) -> tuple[nn.Linear | None, nn.Linear, nn.Linear]:
        """Layers of group g at parity k: own earlier groups (none for the first), hidden, out."""
        own, hidden, out = (cast(nn.ModuleList, layers[k])[g] for layers in (self.own, self.hidden, self.out))
        return cast(nn.Linear, own) if g else None, cast(nn.Linear, hidden), cast(nn.Linear, out)

    def size_layers(self, k: int, g: int) -> tuple[nn.Linear | None, nn.Linear | None]:
        """Layers that see magnitudes, at group g of parity k: of the neighbours, and of the own earlier groups."""
        if not self.magnitudes:
            return None, None
        own = cast(nn.ModuleList, self.own_sizes[k])[g]
        around = cast(nn.Linear, self.neighbour_sizes[k])
        return around if NEIGHBOURS[k] else None, cast(nn.Linear, own) if g else None

    def begin(self, k: int, canvas: Tensor, spatial: Tensor, level: Tensor) -> Tensor:
        """What all groups of parity k share: static features and coded neighbours. canvas is (N, h+2, w+2, M)."""
        i, j = PARITIES[k]
        static, neighbours = self.shared_layers(k)
        z = static(spatial[:, i::2, j::2], level)
        if neighbours is not None:
            h, w = z.shape[1:3]
            seen = [canvas[:, 1 + i + dy :: 2, 1 + j + dx :: 2][:, :h, :w] for dy, dx in NEIGHBOURS[k]]
            z = z + neighbours(torch.cat(seen, -1))
            around, _ = self.size_layers(k, 0)
            if around is not None:
                z = z + around(torch.stack(seen).abs().sum(0))
        return z

    def group(self, k: int, g: int, z: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean (natural unit / unit deviation) and log-scale (in scale indices) of group g."""
        own_layer, hidden, out = self.step_layers(k, g)
        if own_layer is not None and own is not None:
            z = z + own_layer(own)
            _, sizes = self.size_layers(k, g)
            if sizes is not None:
                z = z + sizes(own.abs())
        mean, scale = out(F.relu(hidden(F.relu(z)))).chunk(2, -1)
        return mean, scale


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

    def code(self, y: Tensor, gain: Tensor, spatial: Tensor, level: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """y (N, h, w, M) in steps -> y_hat in steps and bits (N,). With noise, the rate sees uniform noise."""
        n, h, w, m = y.shape
        context = self.context
        to_natural = 1 / (gain * context.unit)
        from_natural = gain * context.unit
        log_gain = gain.log() / SIGMA_STEP + self.scale_offset
        canvas = y.new_zeros(n, h + 2, w + 2, m)
        bits = y.new_zeros(n)
        for k, (i, j) in enumerate(PARITIES):
            target = y[:, i::2, j::2]
            if target.numel() == 0:
                continue
            z = context.begin(k, canvas, spatial, level)
            parts: list[Tensor] = []
            start = 0
            for g, size in enumerate(context.groups):
                channels = slice(start, start + size)
                own = torch.cat(parts, -1) * to_natural[..., :start] if parts else None
                mean, scale = context.group(k, g, z, own)
                mean = mean.float() * from_natural[..., channels]
                index = lower_bound(scale.float() + log_gain[..., channels], 0.0).clamp(max=SCALE_LEVELS - 1.0)
                sigma = SIGMA_MIN * torch.exp(SIGMA_STEP * index)
                residual = target[..., channels] - mean
                rounded = residual + (residual.round() - residual).detach()
                coded = residual + torch.rand_like(residual) - 0.5 if noise else rounded
                bits = bits + gaussian_bits(coded, sigma).sum((1, 2, 3))
                parts.append(mean + rounded)
                start += size
            canvas = canvas.clone()
            canvas[:, 1 + i : 1 + h : 2, 1 + j : 1 + w : 2] = torch.cat(parts, -1) * to_natural
        y_hat = canvas[:, 1 : 1 + h, 1 : 1 + w] / to_natural
        return y_hat, bits

    def forward(self, x: Tensor, spatial: Tensor, level: Tensor, noise: bool = True) -> tuple[Tensor, Tensor]:
        """x (N, 3, 8h, 8w) in 0..1, spatial (1, h, w, F) in 0..1, level (N,) -> x_hat and bits (N,)."""
        hats = level_hats(level)
        gain = interpolate_knots(self.log_gain, level).exp()[:, None, None]
        inverse = interpolate_knots(self.log_inverse_gain, level).exp()[:, None, None]
        y = self.analysis(unshuffle(x - 0.5), spatial, hats).float() * gain
        y_hat, bits = self.code(y, gain, spatial, hats, noise)
        return shuffle(self.synthesis(y_hat * inverse, spatial, hats).float()) + 0.5, bits


def level_hats(level: Tensor) -> Tensor:
    """(N,) float levels -> (N, LEVEL_FEATURES) weights in 0..1 (the float form of `features.level_features`)."""
    knots = torch.arange(LEVEL_KNOTS, device=level.device) * LEVEL_STEP
    return (1 - (level[:, None] - knots).abs() / LEVEL_STEP).clamp(min=0)


def as_float(features: np.ndarray) -> Tensor:
    """Integer features 0..256 -> float32 0..1."""
    return torch.from_numpy(features).float() / ONE
