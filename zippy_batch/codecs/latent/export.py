"""A trained network -> the arrays of a model file: integers wherever decoding depends on them, tables counted from real
symbols.

Weights are rounded where sample images lose least (`rounding.py`), and the units of activations are those that training
used, or, for a network that never was quantised, what the samples need. The entropy tables are histograms of
the residuals that the integer context model itself meets on the samples, mixed with a smooth prior, so that neither the
Gaussian of training nor the rounding of the weights costs bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.int8 import WEIGHT_TOP, Multiplier, round_rows
from zippy_batch.codecs.latent.context import (
    LATENT_MEAN_BITS,
    LATENT_SCALE_BITS,
    QUALITY_LEVELS,
    SHARED_BITS,
    SIXTEENTHS,
)
from zippy_batch.codecs.latent.features import LEVEL_MAX, ONE, spatial_features
from zippy_batch.codecs.latent.network import (
    EDGE_WEIGHT_TOP,
    SCALE_LEVELS,
    SIGMA_MIN,
    SIGMA_STEP,
    SIGNED_TOP,
    Activation,
    Block,
    GroupLayers,
    KindLayers,
    LatentNetwork,
    Static,
    as_float,
    interpolate_knots,
    level_hats,
    to_input,
    unshuffle,
)
from zippy_batch.codecs.latent.order import DEPTHS, VISIT_KINDS
from zippy_batch.codecs.latent.rounding import round_weights
from zippy_batch.codecs.latent.static import STATIC_BITS
from zippy_batch.codecs.latent.synthesis import EDGE_MANTISSA_TOP, GATE_BITS, PIXEL_BITS, STREAM_BITS, STREAM_TOP
from zippy_batch.codecs.rans import TOTAL

Images = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]

_INT32 = (1 << 31) - 1
_HEADROOM = 4.0
"""Times the largest latent met on the samples: so far the input of the synthesis reaches."""
_TAPS = (1 << 14) - 16
"""What the magnitudes of a channel's nine taps add up to, at most."""


def _array(parameter: torch.Tensor) -> NDArray[np.float64]:
    return parameter.detach().double().numpy()


def _int32(values: NDArray[np.float64], most: int = _INT32) -> NDArray[np.int32]:
    return np.rint(values).clip(-most, most).astype(np.int32)


def _static(name: str, layer: Static, bits: int, bias: NDArray[np.float64]) -> Arrays:
    unit = 2.0 ** (bits + STATIC_BITS) / ONE
    return {
        f"{name}.spatial": _int32(_array(layer.spatial.weight) * unit, 1 << 30),
        f"{name}.level": _int32(_array(layer.level.weight) * unit, 1 << 30),
        f"{name}.bias": _int32(bias * 2.0**bits, 1 << 28),
    }


def _layer(
    name: str, weight: NDArray[np.float64], bias: NDArray[np.float64], factor: NDArray[np.float64] | float
) -> Arrays:
    """One matrix, whose columns stand for integers already; factor brings its real results to integers."""
    (rows,), unit = round_rows([weight])
    return {
        f"{name}.weight": rows.astype(np.int8),
        f"{name}.bias": _int32(bias / unit, (1 << 30) - (1 << 21)),
        **Multiplier.of(unit * factor).save(f"{name}.scale"),
    }


def _kind_arrays(kind: KindLayers, name: str) -> Arrays:
    out = _static(f"{name}.static", kind.static, SHARED_BITS, _array(kind.static.spatial.bias))
    width = len(out[f"{name}.static.bias"])
    shared_unit = np.ones(width)
    if kind.parity:
        layers = (kind.near, kind.near_sizes, kind.far)
        rows, shared_unit = round_rows([_array(layer.weight) / SIGNED_TOP for layer in layers])
        out[f"{name}.shared.weight"] = np.concatenate(rows, 1).astype(np.int8)
    out |= Multiplier.of(shared_unit * 2.0**SHARED_BITS).save(f"{name}.shared.scale")
    is_coarse = ".coarse" in name
    depth = _array(kind.depth) if is_coarse else np.zeros((0, width))
    assert len(depth) == (DEPTHS if is_coarse else 0)
    out[f"{name}.depth"] = _int32(depth * 2.0**SHARED_BITS, 1 << 28)
    return out


def _step_arrays(step: GroupLayers, name: str, starts: Sequence[int]) -> Arrays:
    """starts: of the groups before this one, and its own."""
    own_unit = np.ones(step.hidden.in_features)
    bias = np.zeros(step.hidden.in_features)
    out: Arrays = {}
    if step.own is not None and step.own_sizes is not None:
        (values, sizes), own_unit = round_rows([_array(w.weight) / SIGNED_TOP for w in (step.own, step.own_sizes)])
        pairs = [m[:, s:e] for s, e in pairwise(starts) for m in (values, sizes)]
        out[f"{name}.own.weight"] = np.concatenate(pairs, 1).astype(np.int8)
        bias = _array(step.own.bias)
    out |= Multiplier.of(own_unit * 2.0**SHARED_BITS).save(f"{name}.own.scale")
    first, second = _array(step.first.unit), _array(step.second.unit)
    out[f"{name}.first.bias"] = _int32(bias * 2.0**SHARED_BITS, 1 << 28)
    out |= Multiplier.of(2.0**-SHARED_BITS / first).save(f"{name}.first.scale")
    out |= _layer(f"{name}.hidden", _array(step.hidden.weight) * first, _array(step.hidden.bias), 1 / second)
    size = step.out.out_features // 2
    units = np.repeat([2.0**LATENT_MEAN_BITS, 2.0**LATENT_SCALE_BITS], size)
    return out | _layer(f"{name}.out", _array(step.out.weight) * second, _array(step.out.bias), units)


def _context_arrays(network: LatentNetwork) -> Arrays:
    out: Arrays = {}
    starts = network.architecture.starts
    for name in VISIT_KINDS:
        kind = network.context.kind(name)
        out |= _kind_arrays(kind, f"context.{name}")
        for g, step in enumerate(kind.steps):
            assert isinstance(step, GroupLayers)
            out |= _step_arrays(step, f"context.{name}.{g}", starts[: g + 1])
    return out


def _halves(weight: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Rows as 128 * high + low -> (2 * outputs, inputs): the high halves, then the low ones; and each row's unit."""
    (rows,), unit = round_rows([weight], EDGE_WEIGHT_TOP)
    high = (rows + WEIGHT_TOP) >> 7
    return np.concatenate([high, rows - (high << 7)]).astype(np.int8), unit


def _block_arrays(block: Block, name: str) -> Arrays:
    assert isinstance(block.mixed, Activation)
    assert isinstance(block.gated, Activation)
    mixed, gated = _array(block.mixed.unit), _array(block.gated.unit)
    taps = _array(block.depthwise.weight).reshape(len(mixed), 9)
    unit = np.maximum(np.abs(taps).sum(1), 1e-6) / _TAPS
    bias = _array(block.depthwise.bias)  # type: ignore[arg-type]
    out: Arrays = {
        f"{name}.depthwise.taps": np.rint(taps / unit[:, None]).T.astype(np.int16),
        f"{name}.depthwise.bias": _int32(bias / unit * 2.0**STREAM_BITS, (1 << 30) - 1),
        **Multiplier.of(unit * 2.0**-STREAM_BITS / mixed).save(f"{name}.depthwise.scale"),
        **Multiplier.of(2.0 ** (-2 * GATE_BITS) / gated).save(f"{name}.gate.scale"),
    }
    out |= _layer(f"{name}.expand", _array(block.expand.weight) * mixed, _array(block.expand.bias), 2.0**GATE_BITS)
    return out | _layer(
        f"{name}.project", _array(block.project.weight) * gated, _array(block.project.bias), 2.0**STREAM_BITS
    )


def _synthesis_arrays(network: LatentNetwork, input_unit: NDArray[np.float64]) -> Arrays:
    synthesis = network.synthesis
    bias = _array(synthesis.first.bias) + _array(synthesis.static.spatial.bias)
    out = _static("synthesis.static", synthesis.static, STREAM_BITS, bias)
    out["synthesis.first.weight"], unit = _halves(_array(synthesis.first.weight) * input_unit)
    out |= Multiplier.of(unit * 2.0**STREAM_BITS, EDGE_MANTISSA_TOP).save("synthesis.first.scale")
    for b, block in enumerate(synthesis.blocks):
        assert isinstance(block, Block)
        out |= _block_arrays(block, f"synthesis.{b}")
    out["synthesis.last.weight"], unit = _halves(_array(synthesis.last.weight) * 2.0**-STREAM_BITS)
    levels = 255 * 2.0**PIXEL_BITS
    out |= Multiplier.of(unit * levels, EDGE_MANTISSA_TOP).save("synthesis.last.scale")
    middle = (_array(synthesis.last.bias) + 0.5) / unit
    out["synthesis.last.bias"] = np.rint(middle).clip(-(2.0**35), 2.0**35).astype(np.int64)
    return out


def _level_arrays(network: LatentNetwork, input_unit: NDArray[np.float64]) -> Arrays:
    levels = torch.from_numpy(quality_levels().astype(np.float32))
    gain = _array(interpolate_knots(network.log_gain, levels).exp())
    inverse = _array(interpolate_knots(network.log_inverse_gain, levels).exp())
    deviation = gain * _array(network.context.unit)
    offset = SIXTEENTHS * (np.log(gain) / SIGMA_STEP + _array(network.scale_offset))
    to_canvas = SIGNED_TOP / (SIXTEENTHS * deviation * _array(network.context.top))
    return {
        "quality.level": quality_levels().astype(np.int16),
        **Multiplier.of(SIXTEENTHS * deviation * 2.0**-LATENT_MEAN_BITS).save("level.to_sixteenths"),
        **Multiplier.of(to_canvas).save("level.to_canvas"),
        **Multiplier.of(inverse / (SIXTEENTHS * input_unit)).save("level.to_synthesis"),
        "level.scale_offset": np.rint(offset).astype(np.int16),
        "gain.analysis": gain.astype(np.float32),
    }


def quality_levels() -> NDArray[np.int64]:
    """Level 0..LEVEL_MAX of each quality 1..100.

    Finest between 20 and 80, where archives are made (about 24 to 31 dB at 42x42); the rest of the range lies above.
    """
    levels = np.interp(np.arange(1, QUALITY_LEVELS + 1), (1, 20, 80, QUALITY_LEVELS), (0, 118, 336, LEVEL_MAX))
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


def measure(network: LatentNetwork, samples: Sequence[Images], seed: int = 0) -> NDArray[np.float64]:
    """(M,) largest input of the synthesis on batches of equally sized images (n, H, W, 3), at levels over the whole
    range. Sets the units of activations as well, unless the network was trained with units of its own.
    """
    largest = np.full(network.architecture.latents, 1e-3)
    rng = np.random.default_rng(seed)

    def observe() -> None:
        for images in samples:
            h, w = images.shape[1:3]
            is_grey = bool((images == images[..., :1]).all())
            level = torch.from_numpy(rng.uniform(0, LEVEL_MAX, len(images)).astype(np.float32))
            spatial = as_float(spatial_features(h, w, is_grey))[None]
            top = _largest_input(network, to_input(images)[1], spatial, level)
            np.maximum(largest, top, out=largest)

    with torch.no_grad():
        if network.has_units:
            observe()
        else:
            with network.measuring():
                observe()
    return largest


def _largest_input(
    network: LatentNetwork, x: torch.Tensor, spatial: torch.Tensor, level: torch.Tensor
) -> NDArray[np.float64]:
    """Run one batch through the network -> (M,)."""
    hats = level_hats(level)
    gain = interpolate_knots(network.log_gain, level).exp()[:, None, None]
    inverse = interpolate_knots(network.log_inverse_gain, level).exp()[:, None, None]
    y = network.analysis(unshuffle(x - 0.5), spatial, hats) * gain
    y_hat, _ = network.code(y, gain, spatial, hats)
    latents = y_hat * inverse
    network.synthesis(latents, spatial, hats)
    return latents.abs().flatten(0, -2).amax(0).double().numpy()


def export_arrays(network: LatentNetwork, samples: Sequence[Images]) -> Arrays:
    """All arrays of a model file, with tables from the prior alone; counts refine them. The network is left with the
    weights that the arrays have.
    """
    network.eval()
    input_unit = _HEADROOM * measure(network, samples) / STREAM_TOP
    round_weights(network, lambda: measure(network, samples))
    arrays = _context_arrays(network) | _synthesis_arrays(network, input_unit) | _level_arrays(network, input_unit)
    for name, value in network.analysis.state_dict().items():
        arrays[f"analysis.{name}"] = value.detach().float().numpy()
    arrays |= entropy_arrays()
    arrays["encoder.threshold"] = threshold_array(arrays, 1.0)
    return arrays
