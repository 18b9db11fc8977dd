"""A model file -> the float network that it was made of, for training to go on from.

The integers of a model file are the network's weights, rounded; what the rounding took is far below what a training
step changes. Activations have no unit of their own (rectified linear units are homogeneous), so that those of the lossy
codec's context are given one here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zippy_batch.codecs.exact.context import HIDDEN_BITS, STATE_BITS
from zippy_batch.codecs.exact.mixture import END_BITS, LOGIT_BITS, MEAN_BITS, SCALE_BITS
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, MIXTURE, ExactArchitecture, ExactNetwork, Plane, Step
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
from zippy_batch.codecs.latent.order import KINDS
from zippy_batch.codecs.latent.static import STATIC_BITS
from zippy_batch.codecs.latent.synthesis import GATE_BITS, PIXEL_BITS, STREAM_BITS
from zippy_batch.codecs.model_file import Model
from zippy_batch.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]

_ACTIVATION_TOP = 4.0
"""What the largest integer stands for of activations whose unit the integers leave open."""


def latent_network(model: Model) -> LatentNetwork:
    """The lossy codec's network of a model. Raises ModelError for another codec's model, or one that is not whole."""
    with _whole(model), torch.no_grad():
        network = LatentNetwork(LatentArchitecture.from_dict(model.card["architecture"]))
        _fill_latent(network, model.arrays)
    return network


def exact_network(model: Model) -> ExactNetwork:
    """The exact codec's network of a model; raises as `latent_network` does."""
    with _whole(model), torch.no_grad():
        network = ExactNetwork(ExactArchitecture.from_dict(model.card["architecture"]))
        for name in CONTEXT_PLANES:
            plane = network.planes[name]
            assert isinstance(plane, Plane)
            _fill_plane(plane, name, model.arrays)
    return network


@contextmanager
def _whole(model: Model) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"model {model.name!r} lacks what training could go on from: {error}") from error


def _set(parameter: nn.Parameter | torch.Tensor, value: NDArray[Any]) -> None:
    parameter.copy_(torch.from_numpy(np.asarray(value, np.float64)))


def _unit(shift: NDArray[Any], bits: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows, 1) what a weight of 1 is worth in a layer whose results are real values times 2^bits."""
    return np.exp2(-(shift.astype(np.float64) + bits))[:, None]


# ---- lossy ----


def _fill_latent(network: LatentNetwork, arrays: Arrays) -> None:
    for name, value in network.analysis.state_dict().items():
        value.copy_(torch.from_numpy(arrays[f"analysis.{name}"].copy()))
    gain = arrays["gain.analysis"].astype(np.float64)
    log_gain = np.log(gain)
    _set(network.log_gain, _knots(log_gain))
    # the unit of the synthesis's input goes with the inverse gain, and its first layer takes it as it is
    _set(network.log_inverse_gain, _knots(np.log(SIXTEENTHS * _factor(arrays, "level.to_synthesis"))))
    _set(network.scale_offset, (arrays["level.scale_offset"] / SIXTEENTHS - log_gain / SIGMA_STEP).mean(0))
    unit = _factor(arrays, "level.to_sixteenths") * 2.0**LATENT_MEAN_BITS / (SIXTEENTHS * gain)
    _set(network.context.unit, unit.mean(0))
    top = SIGNED_TOP / (_factor(arrays, "level.to_canvas") * SIXTEENTHS * gain * unit)
    _set(network.context.top, top.mean(0))
    for kind in KINDS:
        _fill_kind(network.context.kind(kind), f"context.{kind}", arrays, network.architecture)
    _fill_synthesis(network.synthesis, arrays)


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


def _fill_synthesis(synthesis: Synthesis, arrays: Arrays) -> None:
    _fill_static(synthesis.static, "synthesis.static", arrays, STREAM_BITS)
    _set(synthesis.first.bias, np.zeros(synthesis.first.out_features))
    unit = _factor(arrays, "synthesis.first.scale") * 2.0**-STREAM_BITS
    _set(synthesis.first.weight, _whole_weight(arrays, "synthesis.first.weight") * unit[:, None])
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


# ---- exact ----


def _fill_plane(plane: Plane, name: str, arrays: Arrays) -> None:
    unit = _unit(arrays[f"{name}.state.shift"], STATE_BITS)
    layers: dict[str, Any] = {"static": plane.static, "ends": plane.end_taps}
    layers |= {f"seen.{seen}": layer for seen, layer in zip(CONTEXT_PLANES[name], plane.seen, strict=True)}
    layers |= {f"taps.{g}": layer for g, layer in enumerate(plane.taps)}
    for key, layer in layers.items():
        _set(layer.weight, arrays[f"{name}.state.{key}"] * unit * ONE)
    _set(plane.static.bias, arrays[f"{name}.state.bias"] * unit[:, 0])
    for k, step in enumerate(plane.end_steps):
        assert isinstance(step, Step)
        _fill_step(step, f"{name}.ends.{k}", arrays, END_BITS)
    bits = np.array([*(MEAN_BITS,) * MIXTURE, *(SCALE_BITS,) * MIXTURE, *(LOGIT_BITS,) * (MIXTURE - 1)])
    for g, size in enumerate(plane.shape.groups):
        for k, step in enumerate(plane.group_steps(g)):
            _fill_step(step, f"{name}.{g}.{k}", arrays, np.repeat(bits, size))
    _set(plane.unit, np.exp2(arrays[f"{name}.unit"].astype(np.float64)))


def _fill_step(step: Step, name: str, arrays: Arrays, result_bits: int | NDArray[np.int64]) -> None:
    bits = STATE_BITS
    layers: list[tuple[str, Any]] = [(f"hidden.{i}", layer) for i, layer in enumerate(step.hidden)]
    for key, layer in [*layers, ("out", step.out)]:
        unit = _unit(arrays[f"{name}.{key}.shift"], result_bits if key == "out" else HIDDEN_BITS)
        _set(layer.weight, arrays[f"{name}.{key}.weight"] * unit * 2.0**bits)
        _set(layer.bias, arrays[f"{name}.{key}.bias"] * unit[:, 0])
        bits = HIDDEN_BITS
