"""A trained network -> the arrays of a model file: integers where probabilities are decided, tables counted from real
symbols.

Ranges of activations are measured on sample images; every layer's rows then get the finest power-of-two scale at
which its sums stay provably exact (`integer.quantise_rows`). The entropy tables are histograms of the residuals that
the integer context model itself meets on the samples, mixed with a smooth prior, so that neither the Gaussian of
training nor the rounding of the weights costs bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.integer import quantise_rows
from zippy_batch.codecs.latent.context import (
    ACTIVATION_LIMIT,
    CONTEXT_LIMIT,
    OWN_ARRAYS,
    QUALITY_LEVELS,
    SIXTEENTHS,
    VALUE_LIMIT,
    input_limits,
    split_real,
)
from zippy_batch.codecs.latent.features import LEVEL_MAX, ONE, spatial_features
from zippy_batch.codecs.latent.network import (
    NEIGHBOURS,
    PARITIES,
    SCALE_LEVELS,
    SIGMA_MIN,
    SIGMA_STEP,
    Context,
    LatentNetwork,
    as_float,
    interpolate_knots,
    level_hats,
    to_input,
    unshuffle,
)
from zippy_batch.codecs.rans import TOTAL

Images = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]


class Ranges:
    """Largest values met on the samples: activations of every hidden unit, means and context inputs of every
    channel.
    """

    def __init__(self, network: LatentNetwork) -> None:
        a = network.architecture
        shape = (len(PARITIES), len(a.groups), a.context_width)
        self.first = np.full(shape, 1e-3)
        self.second = np.full(shape, 1e-3)
        self.mean = np.full(a.latents, 1e-3)
        self.context = np.full(a.latents, 1e-3)
        self._network = network

    def observe(self, x: torch.Tensor, spatial: torch.Tensor, level: torch.Tensor) -> None:
        """Run one batch through the float network and keep the maxima."""
        network = self._network
        context = network.context
        starts = np.cumsum([0, *network.architecture.groups])
        hooks = []

        def keep(table: NDArray[np.float64], value: torch.Tensor) -> None:
            top = value.detach().abs().flatten(0, -2).amax(0).double().numpy()
            np.maximum(table, top, out=table)

        for k in range(len(PARITIES)):
            for g in range(len(context.groups)):
                first, second = self.first[k, g], self.second[k, g]
                mean = self.mean[starts[g] : starts[g + 1]]
                _, hidden, out = context.step_layers(k, g)
                hooks.append(hidden.register_forward_pre_hook(lambda _, i, t=first: keep(t, i[0])))
                hooks.append(out.register_forward_pre_hook(lambda _, i, t=second: keep(t, i[0])))
                hooks.append(out.register_forward_hook(lambda _, __, o, t=mean: keep(t, o.chunk(2, -1)[0])))
        gain = interpolate_knots(network.log_gain, level).exp()[:, None, None]
        hats = level_hats(level)
        with torch.no_grad():
            y = network.analysis(unshuffle(x - 0.5), spatial, hats) * gain
            y_hat, _ = network.code(y, gain, spatial, hats, noise=False)
            keep(self.context, y_hat / (gain * context.unit))
        for hook in hooks:
            hook.remove()


def _power(limit: float, largest: NDArray[np.float64]) -> NDArray[np.int64]:
    """Largest power of two p with largest * 2^p <= limit."""
    return np.floor(np.log2(limit / largest)).astype(np.int64)


def _array(parameter: torch.Tensor) -> NDArray[np.float64]:
    return parameter.detach().double().numpy()


def _context_arrays(network: LatentNetwork, ranges: Ranges) -> Arrays:
    context = network.context
    out: Arrays = {}
    scale = CONTEXT_LIMIT / ranges.context
    mean_power = np.clip(_power(VALUE_LIMIT, ranges.mean), 0, 16)
    starts = np.cumsum([0, *context.groups])
    for k in range(len(PARITIES)):
        p = f"context.{k}"
        static, neighbours = context.shared_layers(k)
        weights = {"spatial": _array(static.spatial.weight) / ONE, "level": _array(static.level.weight) / ONE}
        if neighbours is not None:
            weights["neighbours"] = _array(neighbours.weight) / np.tile(scale, len(NEIGHBOURS[k]))
        around, _ = context.size_layers(k, 0)
        if around is not None:
            weights["neighbour_sizes"] = _array(around.weight) / scale
        bias = _array(static.spatial.bias)
        layers = [context.step_layers(k, g) for g in range(len(context.groups))]
        owns = {g: _own_weights(context, k, g, scale[: starts[g]]) for g in range(len(layers))}
        own_biases = {g: _array(own.bias) for g, (own, _, _) in enumerate(layers) if own is not None}
        # one exponent per row for the base and all groups' own parts, because their sums are added
        exponent = np.full(len(bias), 20, np.int64)
        for g in range(len(context.groups)):
            total = np.abs(bias) + (np.abs(own_biases[g]) if g else 0)
            limits = input_limits(network.architecture, k, g)
            exponent = np.minimum(exponent, quantise_rows(weights | owns[g], total, limits)[2])
        unit = np.exp2(exponent.astype(np.float64))[:, None]
        power = np.clip(_power(ACTIVATION_LIMIT, ranges.first[k].max(0)), exponent - 22, exponent - 1)
        for name, w in weights.items():
            out[f"{p}.base.{name}"] = np.rint(w * unit).astype(np.int16)
        out[f"{p}.base.bias"] = np.rint(bias * unit[:, 0]).astype(np.int32)
        out[f"{p}.base.shift"] = (exponent - power).astype(np.int8)
        for g, size in enumerate(context.groups):
            q = f"{p}.{g}"
            if g:
                for name, w in owns[g].items():
                    out[f"{q}.{OWN_ARRAYS[name]}"] = np.rint(w * unit).astype(np.int16)
                out[f"{q}.own.bias"] = np.rint(own_biases[g] * unit[:, 0]).astype(np.int32)
            else:
                out[f"{q}.own.bias"] = np.zeros(len(bias), np.int32)
            second = _power(ACTIVATION_LIMIT, ranges.second[k, g])
            _, hidden, last = layers[g]
            second = _layer(out, f"{q}.hidden", _array(hidden.weight) / np.exp2(power), _array(hidden.bias), second)
            wanted = np.concatenate([mean_power[starts[g] : starts[g + 1]], np.full(size, 4)])
            got = _layer(out, f"{q}.out", _array(last.weight) / np.exp2(second), _array(last.bias), wanted)
            if (got != wanted).any():
                raise ValueError(f"{q}.out: weights leave too little room for the outputs' precision")
    return out | _level_arrays(network, scale, mean_power)


def _own_weights(context: Context, k: int, g: int, scale: NDArray[np.float64]) -> Arrays:
    own, _, _ = context.step_layers(k, g)
    _, sizes = context.size_layers(k, g)
    layers = {"own": own, "own_sizes": sizes}
    return {name: _array(layer.weight) / scale for name, layer in layers.items() if layer is not None}


def _layer(
    out: Arrays, name: str, weight: NDArray[np.float64], bias: NDArray[np.float64], power: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Quantise one layer whose outputs are wanted in units of 2^-power; returns the power that they got."""
    rows, offset, exponent = quantise_rows({"a": weight}, bias, {"a": ACTIVATION_LIMIT})
    power = np.clip(power, exponent - 22, exponent - 1)
    out[f"{name}.weight"] = rows["a"].astype(np.int16)
    out[f"{name}.bias"] = offset.astype(np.int32)
    out[f"{name}.shift"] = (exponent - power).astype(np.int8)
    return power


def _level_arrays(network: LatentNetwork, scale: NDArray[np.float64], mean_power: NDArray[np.int64]) -> Arrays:
    levels = torch.from_numpy(quality_levels().astype(np.float32))
    gain = _array(interpolate_knots(network.log_gain, levels).exp())
    inverse = _array(interpolate_knots(network.log_inverse_gain, levels).exp())
    natural = gain * _array(network.context.unit)
    to_mantissa, to_exponent = split_real(scale / (SIXTEENTHS * natural))
    from_mantissa, from_exponent = split_real(SIXTEENTHS * natural / np.exp2(mean_power))
    offset = 16 * (np.log(gain) / SIGMA_STEP + _array(network.scale_offset))
    return {
        "quality.level": quality_levels().astype(np.int16),
        "level.to_context.mantissa": to_mantissa,
        "level.to_context.exponent": to_exponent,
        "level.from_context.mantissa": from_mantissa,
        "level.from_context.exponent": from_exponent,
        "level.scale_offset": np.rint(offset).astype(np.int16),
        "gain.analysis": gain.astype(np.float32),
        "gain.synthesis": inverse.astype(np.float32),
    }


def quality_levels() -> NDArray[np.int64]:
    """Level 0..LEVEL_MAX of each quality 1..100.

    Finest between 20 and 80, where archives are made (about 24 to 31 dB at 42x42); the rest of the range lies above.
    """
    levels = np.interp(np.arange(1, QUALITY_LEVELS + 1), (1, 20, 80, QUALITY_LEVELS), (0, 136, 336, LEVEL_MAX))
    return np.rint(levels).astype(np.int64)


def prior_frequencies(
    index: int, counts: NDArray[np.float64] | None = None, weight: float = 300.0
) -> NDArray[np.int64]:
    """Frequencies of 0, -1, 1, ..., radius, escape for a scale index: a Gaussian with heavier tails, mixed with counts.

    counts (2 * radius + 2,) are in the same order; `weight` is how many observations the prior is worth.
    """
    sigma = SIGMA_MIN * np.exp(SIGMA_STEP * index)
    radius = int(np.ceil(4.5 * sigma)) + 2

    def mass(s: float) -> NDArray[np.float64]:
        edges = torch.special.ndtr(torch.from_numpy(np.arange(-0.5, radius + 1) / s)).numpy()
        return np.diff(edges)

    p = 0.92 * mass(sigma) + 0.08 * mass(2.2 * sigma)
    order = np.concatenate([[p[0]], np.repeat(p[1:], 2), [max(1e-7, 1 - p[0] - 2 * p[1:].sum())]])
    if counts is not None:
        both = counts.copy()
        both[1:-1] = np.repeat((counts[1:-1:2] + counts[2:-1:2]) / 2, 2)
        order = weight * order + both
    order = order / order.sum()
    frequency = np.maximum(1, np.rint(order * (TOTAL - len(order))).astype(np.int64) + (order > 0))
    frequency[0] += TOTAL - frequency.sum()
    return frequency


def entropy_arrays(counts: Sequence[NDArray[np.float64] | None] | None = None) -> Arrays:
    """Tables of all scale indices; index 0 has none."""
    tables = [prior_frequencies(i, counts[i] if counts else None) for i in range(1, SCALE_LEVELS)]
    return {
        "entropy.radius": np.array([0, *((len(t) - 2) // 2 for t in tables)], np.int16),
        "entropy.frequencies": np.concatenate(tables).astype(np.uint16),
    }


def threshold_array(arrays: Arrays, strength: float) -> NDArray[np.float32]:
    """Rounding thresholds per scale index: half the bits that a 1 costs above a 0, times the price of a bit in
    squared steps.

    At high rate lambda prices a bit at ln(2) / 6 = 0.1155 squared steps (from D = step^2 / 12); `strength` scales that.
    """
    radius = arrays["entropy.radius"].astype(np.int64)
    flat = arrays["entropy.frequencies"].astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(2 * radius[1:] + 2)])
    extra = np.array([0.0, *(np.log2(flat[s] / flat[s + 1]) for s in starts[:-1])])
    return np.clip(0.5 * strength * np.log(2) / 6 * extra, 0, 0.6).astype(np.float32)


def measure(network: LatentNetwork, samples: Sequence[Images], seed: int = 0) -> Ranges:
    """Activation ranges on batches of equally sized images (n, H, W, 3), at levels over the whole range."""
    ranges = Ranges(network)
    rng = np.random.default_rng(seed)
    for images in samples:
        h, w = images.shape[1:3]
        is_grey = bool((images == images[..., :1]).all())
        level = torch.from_numpy(rng.uniform(0, LEVEL_MAX, len(images)).astype(np.float32))
        ranges.observe(to_input(images)[1], as_float(spatial_features(h, w, is_grey))[None], level)
    return ranges


def export_arrays(network: LatentNetwork, samples: Sequence[Images]) -> Arrays:
    """All arrays of a model file, with tables from the prior alone; `count_residuals` refines them."""
    network.eval()
    arrays = _context_arrays(network, measure(network, samples))
    for side, module in (("analysis", network.analysis), ("synthesis", network.synthesis)):
        for name, value in module.state_dict().items():
            arrays[f"{side}.{name}"] = value.detach().float().numpy()
    arrays |= entropy_arrays()
    arrays["encoder.threshold"] = threshold_array(arrays, 1.0)
    return arrays
