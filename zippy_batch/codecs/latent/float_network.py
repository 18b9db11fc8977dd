"""A model file -> the float network that it was made of, to train on or to take gradients of.

The integers of a model file are the network's weights, rounded: with its activations rounded as well, it computes what
the integer networks do. Where integers leave a unit open (activations and the synthesis's input), it is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zippy_batch.codecs.integer import Arrays
from zippy_batch.codecs.latent.context import LATENT_MEAN_BITS, LATENT_SCALE_BITS, SHARED_BITS, SIXTEENTHS
from zippy_batch.codecs.latent.export import quality_levels
from zippy_batch.codecs.latent.features import LEVEL_KNOTS, LEVEL_STEP, ONE
from zippy_batch.codecs.latent.network import (
    SIGMA_STEP,
    SIGNED_TOP,
    UNSIGNED_TOP,
    Activation,
    Block,
    GroupLayers,
    KindLayers,
    LatentArchitecture,
    LatentNetwork,
    Static,
    Synthesis,
)
from zippy_batch.codecs.latent.order import VISIT_KINDS
from zippy_batch.codecs.latent.static import STATIC_BITS
from zippy_batch.codecs.latent.synthesis import GATE_BITS, PIXEL_BITS, STREAM_BITS

_ACTIVATION_TOP = 4.0
"""What the largest integer stands for of activations whose unit the integers leave open."""


def _set(parameter: nn.Parameter | torch.Tensor, value: NDArray[Any]) -> None:
    parameter.copy_(torch.from_numpy(np.asarray(value, np.float64)))


def fill_network(network: LatentNetwork, arrays: Arrays) -> None:
    """Give a network of the model's architecture the weights of its arrays. Raises KeyError, RuntimeError or ValueError
    where they are not of that architecture.
    """
    for name, value in network.analysis.state_dict().items():
        value.copy_(torch.from_numpy(arrays[f"analysis.{name}"].copy()))
    gain = arrays["gain.analysis"].astype(np.float64)
    log_gain = np.log(gain)
    _set(network.log_gain, _knots(log_gain))
    log_inverse = np.log(SIXTEENTHS * _factor(arrays, "level.to_synthesis"))
    # what the integers leave open: the inverse gain undoes the gain at a middle level, as where training begins;
    # weights that went with inputs in the hundreds would be lost at the first step of an optimiser without a scale
    input_unit = np.exp((log_gain + log_inverse).mean(0))
    _set(network.log_inverse_gain, _knots(log_inverse - np.log(input_unit)))
    _set(network.scale_offset, (arrays["level.scale_offset"] / SIXTEENTHS - log_gain / SIGMA_STEP).mean(0))
    unit = _factor(arrays, "level.to_sixteenths") * 2.0**LATENT_MEAN_BITS / (SIXTEENTHS * gain)
    _set(network.context.unit, unit.mean(0))
    top = SIGNED_TOP / (_factor(arrays, "level.to_canvas") * SIXTEENTHS * gain * unit)
    _set(network.context.top, top.mean(0))
    for kind in VISIT_KINDS:
        _fill_kind(network.context.kind(kind), f"context.{kind}", arrays, network.architecture)
    _fill_synthesis(network.synthesis, arrays, input_unit)


def _factor(arrays: Arrays, name: str) -> NDArray[np.float64]:
    """The real factors that a multiplier stands for."""
    return arrays[f"{name}.mantissa"].astype(np.float64) * 2.0 ** -int(arrays[f"{name}.shift"][0])


def _knots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(QUALITY_LEVELS, C) interpolated between knots -> (LEVEL_KNOTS, C)."""
    level = quality_levels() / LEVEL_STEP
    weights = np.maximum(0, 1 - np.abs(level[:, None] - np.arange(LEVEL_KNOTS)))
    return np.linalg.lstsq(weights, values, rcond=None)[0]


def _fill_static(static: Static, name: str, arrays: Arrays, bits: int) -> None:
    unit = ONE * 2.0 ** -(bits + STATIC_BITS)
    _set(static.spatial.weight, arrays[f"{name}.spatial"] * unit)
    _set(static.level.weight, arrays[f"{name}.level"] * unit)
    _set(static.spatial.bias, arrays[f"{name}.bias"] * 2.0**-bits)


def _fill_kind(kind: KindLayers, name: str, arrays: Arrays, a: LatentArchitecture) -> None:
    _fill_static(kind.static, f"{name}.static", arrays, SHARED_BITS)
    if len(arrays[f"{name}.depth"]):
        _set(kind.depth, arrays[f"{name}.depth"] * 2.0**-SHARED_BITS)
    if kind.parity:
        weight = _seen_weight(arrays, f"{name}.shared")
        layers = (kind.near, kind.near_sizes, kind.far)
        parts = np.split(weight, np.cumsum([layer.in_features for layer in layers])[:-1], 1)
        for layer, part in zip(layers, parts, strict=True):
            _set(layer.weight, part)
    for g, group in enumerate(kind.steps):
        assert isinstance(group, GroupLayers)
        _fill_group(group, f"{name}.{g}", arrays, a.groups[:g])


def _seen_weight(arrays: Arrays, name: str) -> NDArray[np.float64]:
    """A layer that sees 8-bit values, as one that sees -1..1."""
    unit = _factor(arrays, f"{name}.scale") * 2.0**-SHARED_BITS
    return arrays[f"{name}.weight"] * unit[:, None] * SIGNED_TOP


def _fill_group(layers: GroupLayers, name: str, arrays: Arrays, earlier: Sequence[int]) -> None:
    """earlier: sizes of the groups before this one, whose values and sizes alternate."""
    if layers.own is not None and layers.own_sizes is not None:
        weight = _seen_weight(arrays, f"{name}.own")
        parts = np.split(weight, np.cumsum(np.repeat(earlier, 2))[:-1], 1)
        _set(layers.own.weight, np.concatenate(parts[::2], 1))
        _set(layers.own_sizes.weight, np.concatenate(parts[1::2], 1))
        _set(layers.own.bias, arrays[f"{name}.first.bias"] * 2.0**-SHARED_BITS)
    first = 2.0**-SHARED_BITS / _factor(arrays, f"{name}.first.scale")
    second = np.full(layers.out.in_features, _ACTIVATION_TOP / UNSIGNED_TOP)
    _set(layers.first.top, first * UNSIGNED_TOP)
    _set(layers.second.top, second * UNSIGNED_TOP)
    _fill_layer(layers.hidden, f"{name}.hidden", arrays, _factor(arrays, f"{name}.hidden.scale") * second, first)
    size = layers.out.out_features // 2
    unit = _factor(arrays, f"{name}.out.scale") * np.repeat([2.0**-LATENT_MEAN_BITS, 2.0**-LATENT_SCALE_BITS], size)
    _fill_layer(layers.out, f"{name}.out", arrays, unit, second)


def _fill_layer(
    layer: nn.Linear, name: str, arrays: Arrays, unit: NDArray[np.float64], columns: NDArray[np.float64]
) -> None:
    """unit: what a 1 of a row's sums is worth; columns: what a 1 of an input is worth."""
    _set(layer.weight, arrays[f"{name}.weight"] * unit[:, None] / columns)
    _set(layer.bias, arrays[f"{name}.bias"] * unit)


def _fill_synthesis(synthesis: Synthesis, arrays: Arrays, input_unit: NDArray[np.float64]) -> None:
    """input_unit: (M,) what a 1 of the input is worth to the integer layers."""
    _fill_static(synthesis.static, "synthesis.static", arrays, STREAM_BITS)
    _set(synthesis.first.bias, np.zeros(synthesis.first.out_features))
    unit = _factor(arrays, "synthesis.first.scale") * 2.0**-STREAM_BITS
    _set(synthesis.first.weight, _whole_weight(arrays, "synthesis.first.weight") * unit[:, None] * input_unit)
    for b, block in enumerate(synthesis.blocks):
        assert isinstance(block, Block)
        _fill_block(block, f"synthesis.{b}", arrays)
    unit = _factor(arrays, "synthesis.last.scale") / (255 * 2.0**PIXEL_BITS)
    _set(synthesis.last.weight, _whole_weight(arrays, "synthesis.last.weight") * unit[:, None] * 2.0**STREAM_BITS)
    _set(synthesis.last.bias, arrays["synthesis.last.bias"] * unit - 0.5)


def _whole_weight(arrays: Arrays, name: str) -> NDArray[np.int64]:
    high, low = np.split(arrays[name].astype(np.int64), 2)
    return 128 * high + low


def _fill_block(block: Block, name: str, arrays: Arrays) -> None:
    assert isinstance(block.mixed, Activation)
    assert isinstance(block.gated, Activation)
    mixed = np.full(block.project.in_features, _ACTIVATION_TOP / SIGNED_TOP)
    gated = 2.0 ** (-2 * GATE_BITS) / _factor(arrays, f"{name}.gate.scale")
    _set(block.mixed.top, mixed * SIGNED_TOP)
    _set(block.gated.top, gated * SIGNED_TOP)
    unit = _factor(arrays, f"{name}.depthwise.scale") * mixed * 2.0**STREAM_BITS
    taps = arrays[f"{name}.depthwise.taps"].T * unit[:, None]
    _set(block.depthwise.weight, taps.reshape(tuple(block.depthwise.weight.shape)))
    assert block.depthwise.bias is not None
    _set(block.depthwise.bias, arrays[f"{name}.depthwise.bias"] * unit * 2.0**-STREAM_BITS)
    expanded = _factor(arrays, f"{name}.expand.scale") * 2.0**-GATE_BITS
    _fill_layer(block.expand, f"{name}.expand", arrays, expanded, mixed)
    projected = _factor(arrays, f"{name}.project.scale") * 2.0**-STREAM_BITS
    _fill_layer(block.project, f"{name}.project", arrays, projected, gated)
