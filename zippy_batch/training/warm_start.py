"""A model file -> the float network that it was made of, for training to go on from.

The integers of a model file are the network's weights, rounded; what the rounding took is far below what a training
step changes. Activations have no unit of their own (rectified linear units are homogeneous), so that those of the lossy
codec's context are given one here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zippy_batch.codecs.exact.context import HIDDEN_BITS, STATE_BITS
from zippy_batch.codecs.exact.mixture import END_BITS, LOGIT_BITS, MEAN_BITS, SCALE_BITS
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, MIXTURE, ExactArchitecture, ExactNetwork, Plane, Step
from zippy_batch.codecs.latent.context import SIXTEENTHS
from zippy_batch.codecs.latent.export import quality_levels
from zippy_batch.codecs.latent.features import LEVEL_KNOTS, LEVEL_STEP, ONE
from zippy_batch.codecs.latent.network import (
    NEIGHBOURS,
    PARITIES,
    SIGMA_STEP,
    Context,
    LatentArchitecture,
    LatentNetwork,
    channel_units,
)
from zippy_batch.codecs.model_file import Model
from zippy_batch.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]

_ACTIVATION_BITS = 9
"""Integers of 11 bits stand for activations up to 4."""
_SCALE_BITS = 4
"""Of the context's scales: sixteenths of an index."""


def latent_network(model: Model, fast: bool = False) -> LatentNetwork:
    """The lossy codec's network of a model; where that knew no magnitudes, it may now learn to use them.

    If it is to be `fast`, and the model is not yet, the last blocks of the synthesis are left out, and so are the
    latents that say least; a context of another shape begins anew. Raises ModelError for a model of another codec, or
    one that is not whole.
    """
    with _whole(model), torch.no_grad():
        own = LatentArchitecture.from_dict(model.card["architecture"])
        shape = replace(own.fast() if fast else own, magnitudes=True)
        network = LatentNetwork(shape)
        _fill_latent(network, model.arrays, own)
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
    except ModelError:
        raise
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"model {model.name!r} lacks what training could go on from: {error}") from error


def _set(parameter: nn.Parameter | torch.Tensor, value: NDArray[Any]) -> None:
    parameter.copy_(torch.from_numpy(np.asarray(value, np.float64)))


def _unit(shift: NDArray[Any], bits: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows, 1) what a weight of 1 is worth in a layer whose results are real values times 2^bits."""
    return np.exp2(-(shift.astype(np.float64) + bits))[:, None]


# ---- lossy ----


def _fill_latent(network: LatentNetwork, arrays: Arrays, model: LatentArchitecture) -> None:
    shape = network.architecture
    # latents are in the order of their frequencies, and stay so
    kept = np.sort(np.argsort(-arrays["level.scale_offset"].mean(0), kind="stable")[: shape.latents])
    for side, module in (("analysis", network.analysis), ("synthesis", network.synthesis)):
        for name, value in module.state_dict().items():
            array = arrays[f"{side}.{name}"]
            if name.startswith("last.") and module is network.analysis:
                array = array[kept]
            elif name == "first.weight" and module is network.synthesis:
                array = array[:, kept]
            value.copy_(torch.from_numpy(array.copy()))
    log_gain = np.log(arrays["gain.analysis"].astype(np.float64))[:, kept]
    _set(network.log_gain, _knots(log_gain))
    _set(network.log_inverse_gain, _knots(np.log(arrays["gain.synthesis"].astype(np.float64))[:, kept]))
    _set(network.scale_offset, (arrays["level.scale_offset"][:, kept] / 16 - log_gain / SIGMA_STEP).mean(0))
    _set(network.context.unit, channel_units(model.latents)[kept])
    if (shape.groups, shape.context_width) != (model.groups, model.context_width):
        return
    natural = np.exp(log_gain) * network.context.unit.double().numpy()
    scale = np.exp(np.log(_real(arrays, "to_context") * SIXTEENTHS * natural).mean(0))
    mean_bits = np.rint(np.log2(SIXTEENTHS * natural / _real(arrays, "from_context")).mean(0))
    for k in range(len(PARITIES)):
        _fill_parity(network.context, k, arrays, scale, mean_bits.astype(np.int64), model.magnitudes)


def _knots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(QUALITIES, C) interpolated between knots -> (LEVEL_KNOTS, C)."""
    level = quality_levels() / LEVEL_STEP
    weights = np.maximum(0, 1 - np.abs(level[:, None] - np.arange(LEVEL_KNOTS)))
    return np.linalg.lstsq(weights, values, rcond=None)[0]


def _real(arrays: Arrays, name: str) -> NDArray[np.float64]:
    mantissa = np.maximum(arrays[f"level.{name}.mantissa"].astype(np.float64), 1)
    return mantissa * np.exp2(-arrays[f"level.{name}.exponent"].astype(np.float64))


def _fill_parity(
    context: Context, k: int, arrays: Arrays, scale: NDArray[np.float64], mean_bits: NDArray[np.int64], magnitudes: bool
) -> None:
    p = f"context.{k}"
    unit = _unit(arrays[f"{p}.base.shift"], _ACTIVATION_BITS)
    static, neighbours = context.shared_layers(k)
    _set(static.spatial.weight, arrays[f"{p}.base.spatial"] * unit * ONE)
    _set(static.level.weight, arrays[f"{p}.base.level"] * unit * ONE)
    _set(static.spatial.bias, arrays[f"{p}.base.bias"] * unit[:, 0])
    around, _ = context.size_layers(k, 0)
    if neighbours is not None:
        _set(neighbours.weight, arrays[f"{p}.base.neighbours"] * unit * np.tile(scale, len(NEIGHBOURS[k])))
    if around is not None and magnitudes:
        _set(around.weight, arrays[f"{p}.base.neighbour_sizes"] * unit * scale)
    start = 0
    for g, size in enumerate(context.groups):
        q = f"{p}.{g}"
        own, hidden, out = context.step_layers(k, g)
        _, sizes = context.size_layers(k, g)
        if own is not None:
            _set(own.weight, arrays[f"{q}.own.weight"] * unit * scale[:start])
            _set(own.bias, arrays[f"{q}.own.bias"] * unit[:, 0])
        if sizes is not None and magnitudes:
            _set(sizes.weight, arrays[f"{q}.own.sizes"] * unit * scale[:start])
        bits = np.concatenate([mean_bits[start : start + size], np.full(size, _SCALE_BITS)])
        for layer, name, result in ((hidden, "hidden", _ACTIVATION_BITS), (out, "out", bits)):
            of_layer = _unit(arrays[f"{q}.{name}.shift"], result)
            _set(layer.weight, arrays[f"{q}.{name}.weight"] * of_layer * 2.0**_ACTIVATION_BITS)
            _set(layer.bias, arrays[f"{q}.{name}.bias"] * of_layer[:, 0])
        start += size


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
