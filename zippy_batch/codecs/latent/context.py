"""The context model in integers: what the entropy coder's tables are chosen by, the same on every machine.

Latents are coded in twelve steps: four 2x2 parities of the grid (`network.PARITIES`), and inside each the channel
groups. A step sees the static features, the coded neighbours and its own position's earlier groups:

    static, neighbours -> base --+--> rescale -> hidden -> rescale -> out -> mean, scale per channel
    own earlier groups -> own  --+
                                       (of neighbours, also the sum of magnitudes; of own groups, the magnitudes)
    mean  -> mu in sixteenths of a quantisation step
    scale -> table index 0..63 (0: the residual is certainly 0)
    y_hat = mu + 16 * residual, in sixteenths;   and, scaled to +-CONTEXT_LIMIT, what later steps see

Everything is an integer in a float32 container (see `integer.py`); the tensors come from a model file and their
exactness is proved whenever one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codecs.integer import Arrays, RoundedSum, fetch, load_layer, multiply, probe, prove
from zippy_batch.codecs.latent.features import LEVEL_FEATURES, ONE, SPATIAL_FEATURES
from zippy_batch.codecs.latent.network import NEIGHBOURS, PARITIES, SCALE_LEVELS, LatentArchitecture
from zippy_batch.errors import ModelError

SIXTEENTHS = 16
ACTIVATION_LIMIT = 2047
CONTEXT_LIMIT = 511
VALUE_LIMIT = 8191
"""Means, and latents in sixteenths, as far as the networks see them; VALUE_LIMIT * MANTISSA_LIMIT < 2^23."""
MANTISSA_LIMIT = 1023
QUALITY_LEVELS = 100

OWN_ARRAYS = {"own": "own.weight", "own_sizes": "own.sizes"}
"""Array of each input of a step's own part."""

CodeStep = Callable[[int, slice, Tensor, Tensor], Tensor]
"""(parity, channels, mu in sixteenths (N, h', w', G), table index (N, h', w', G)) -> residuals (N, h', w', G),
float32 integers.
"""


def input_limits(a: LatentArchitecture, parity: int, group: int) -> dict[str, int]:
    """Largest magnitude of each input of a step's first layer."""
    limits = {"spatial": ONE, "level": ONE}
    count = len(NEIGHBOURS[parity])
    if count:
        limits["neighbours"] = CONTEXT_LIMIT
    if count and a.magnitudes:
        limits["neighbour_sizes"] = count * CONTEXT_LIMIT
    if group:
        limits["own"] = CONTEXT_LIMIT
    if group and a.magnitudes:
        limits["own_sizes"] = CONTEXT_LIMIT
    return limits


@dataclass(frozen=True)
class _Step:
    """The layers of one step."""

    own: RoundedSum
    """Of the own channels, added to the parity's base."""
    hidden: RoundedSum
    out: RoundedSum

    def to(self, device: torch.device) -> _Step:
        return _Step(self.own.to(device), self.hidden.to(device), self.out.to(device))


class IntegerContext:
    """The integer context model of one model file, on one device."""

    def __init__(self, architecture: LatentArchitecture, arrays: Arrays, device: torch.device) -> None:
        probe(device)
        a = self._architecture = architecture
        self._device = device
        self._bases: list[RoundedSum] = []
        self._steps: list[list[_Step]] = []
        for k in range(len(PARITIES)):
            base, steps = _load_parity(a, arrays, k)
            self._bases.append(base.to(device))
            self._steps.append([step.to(device) for step in steps])
        self._to_context = _multiplier(arrays, "to_context", a.latents, device)
        self._from_context = _multiplier(arrays, "from_context", a.latents, device)
        offset = fetch(arrays, "level.scale_offset", "int16", QUALITY_LEVELS, a.latents)
        self._scale_offset = torch.from_numpy(offset.astype(np.float32)).to(device)

    def traverse(
        self, spatial: Tensor, level: Tensor, quality: Tensor, grid: tuple[int, int], code: CodeStep
    ) -> Tensor:
        """Visit all steps in coding order; `code` turns each step's prediction into residuals.

        spatial (N or 1, h, w, F) and level (N, F) hold integer features, quality (N,) indices 0..99.
        Returns y_hat in sixteenths (N, h, w, M), float32 integers.
        """
        n, (h, w), m = len(quality), grid, self._architecture.latents
        to_mantissa, to_factor = (t[quality][:, None, None] for t in self._to_context)
        from_mantissa, from_factor = (t[quality][:, None, None] for t in self._from_context)
        scale_offset = self._scale_offset[quality][:, None, None]
        canvas = torch.zeros(n, h + 2, w + 2, m, device=self._device)
        y_hat = torch.empty(n, h, w, m, device=self._device)
        for k, (i, j) in enumerate(PARITIES):
            here = spatial[:, i::2, j::2]
            hk, wk = here.shape[1:3]
            if hk == 0 or wk == 0:
                continue
            base = self._base(k, here, level, canvas[:, i:, j:])
            own = torch.empty(n, hk, wk, m, device=self._device)
            start = 0
            for step, size in zip(self._steps[k], self._architecture.groups, strict=True):
                channels = slice(start, start + size)
                mean, scale = self._predict(step, base, own[..., :start])
                mu = multiply(mean, from_mantissa[..., channels], from_factor[..., channels], VALUE_LIMIT)
                index = ((scale + scale_offset[..., channels] + 8) * (1 / 16)).floor_().clamp_(0, SCALE_LEVELS - 1)
                value = mu + SIXTEENTHS * code(k, channels, mu, index)
                y_hat[:, i::2, j::2, channels] = value
                value = value.clamp(-VALUE_LIMIT, VALUE_LIMIT)
                own[..., channels] = multiply(
                    value, to_mantissa[..., channels], to_factor[..., channels], CONTEXT_LIMIT
                )
                start += size
            canvas[:, 1 + i : 1 + h : 2, 1 + j : 1 + w : 2] = own
        return y_hat

    def _base(self, k: int, spatial: Tensor, level: Tensor, canvas: Tensor) -> Tensor:
        """What all groups of parity k share; of the canvas, what lies from the parity's first position's upper left
        neighbour on."""
        layer = self._bases[k]
        base = layer.accumulate("spatial", spatial)
        base = base + torch.nn.functional.linear(level, layer.weights["level"])[:, None, None]
        if NEIGHBOURS[k]:
            h, w = spatial.shape[1:3]
            seen = [canvas[:, 1 + dy :: 2, 1 + dx :: 2][:, :h, :w] for dy, dx in NEIGHBOURS[k]]
            if self._architecture.magnitudes:
                seen.append(_sum_of_magnitudes(seen))
            base += torch.nn.functional.linear(torch.cat(seen, -1), layer.weights["neighbours"])
        return base

    def _predict(self, step: _Step, base: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """base (N, h', w', C), own earlier channels (N, h', w', e) -> mean and scale (N, h', w', G), integers."""
        if own.shape[-1]:
            seen = torch.cat([own, own.abs()], -1) if self._architecture.magnitudes else own
            total = step.own.accumulate("own", seen).add_(base)
        else:
            total = base + step.own.bias
        a = RoundedSum.settle(total, 0, ACTIVATION_LIMIT)
        a = step.hidden.settle(step.hidden.accumulate("a", a), 0, ACTIVATION_LIMIT)
        mean, scale = step.out.settle(step.out.accumulate("a", a), -VALUE_LIMIT, VALUE_LIMIT).chunk(2, -1)
        return mean, scale


def _sum_of_magnitudes(seen: Sequence[Tensor]) -> Tensor:
    total = seen[0].abs()
    for other in seen[1:]:
        total += other.abs()
    return total


def _load_parity(a: LatentArchitecture, arrays: Arrays, k: int) -> tuple[RoundedSum, list[_Step]]:
    """The layers of one parity, their exactness proved over every sum that the coder forms."""
    width = a.context_width
    limits = input_limits(a, k, 0)
    inputs = {"spatial": SPATIAL_FEATURES, "level": LEVEL_FEATURES, "neighbours": len(NEIGHBOURS[k]) * a.latents}
    inputs["neighbour_sizes"] = a.latents
    weights = {name: fetch(arrays, f"context.{k}.base.{name}", "int16", width, inputs[name]) for name in limits}
    bias = fetch(arrays, f"context.{k}.base.bias", "int32", width).astype(np.int64)
    shift = fetch(arrays, f"context.{k}.base.shift", "int8", width)
    base = prove(f"context.{k}.base", weights, bias, shift, limits)
    steps, start = [], 0
    for g, size in enumerate(a.groups):
        p = f"context.{k}.{g}"
        everything = input_limits(a, k, g)
        own_names = [name for name in everything if name in OWN_ARRAYS]
        own_weights = {n: fetch(arrays, f"{p}.{OWN_ARRAYS[n]}", "int16", width, start) for n in own_names}
        own_bias = fetch(arrays, f"{p}.own.bias", "int32", width).astype(np.int64)
        # the coder adds the own sum to the base sum: the proof is over both together
        prove(f"{p}.own", weights | own_weights, np.abs(bias) + np.abs(own_bias), shift, everything)
        own = prove(f"{p}.own", own_weights, own_bias, shift, everything)
        outputs = (("hidden", width), ("out", 2 * size))
        layers = [load_layer(arrays, f"{p}.{n}", o, width, ACTIVATION_LIMIT) for n, o in outputs]
        if "own_sizes" in own_weights:
            own = own.joined("own", "own_sizes")
        # the half that rounding needs comes with the base
        steps.append(_Step(RoundedSum.of(own, half=0.0), *map(RoundedSum.of, layers)))
        start += size
    if "neighbour_sizes" in weights:
        base = base.joined("neighbours", "neighbour_sizes")
    return RoundedSum.of(base), steps


def _multiplier(arrays: Arrays, name: str, latents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    mantissa = fetch(arrays, f"level.{name}.mantissa", "int16", QUALITY_LEVELS, latents)
    exponent = fetch(arrays, f"level.{name}.exponent", "int8", QUALITY_LEVELS, latents)
    if mantissa.min() < 0 or mantissa.max() > MANTISSA_LIMIT or exponent.min() < 0 or exponent.max() > 22:
        raise ModelError(f"model: level.{name} is not exact: mantissas must be 0..{MANTISSA_LIMIT}, exponents 0..22")
    factor = np.exp2(-exponent.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(mantissa.astype(np.float32)).to(device), torch.from_numpy(factor).to(device)


def split_real(value: NDArray[np.float64]) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
    """Positive real multipliers -> mantissa 0..1023 and exponent 0..22 with value ~ mantissa * 2^-exponent."""
    exponent = np.clip(np.floor(np.log2(MANTISSA_LIMIT / np.maximum(value, 1e-12))), 0, 22)
    mantissa = np.minimum(np.rint(value * np.exp2(exponent)), MANTISSA_LIMIT)
    return mantissa.astype(np.int16), exponent.astype(np.int8)
