"""A model file -> the float network that it was made of, for training to go on from.

The integers of a model file are the network's weights, rounded; what the rounding took is far below what a training
step changes. The lossy codec's part is `codecs/latent/float_network.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zippy_batch.codecs.exact.context import HIDDEN_BITS, STATE_BITS
from zippy_batch.codecs.exact.mixture import END_BITS, LOGIT_BITS, MEAN_BITS, SCALE_BITS
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, MIXTURE, ExactArchitecture, ExactNetwork, Plane, Step
from zippy_batch.codecs.latent.features import ONE
from zippy_batch.codecs.latent.float_network import fill_network
from zippy_batch.codecs.latent.network import LatentArchitecture, LatentNetwork
from zippy_batch.codecs.model_file import Model
from zippy_batch.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]


def latent_network(model: Model) -> LatentNetwork:
    """The lossy codec's network of a model. Raises ModelError for another codec's model, or one that is not whole."""
    with _whole(model), torch.no_grad():
        network = LatentNetwork(LatentArchitecture.from_dict(model.card["architecture"]))
        fill_network(network, model.arrays)
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
