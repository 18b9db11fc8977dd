"""A trained coefficient network -> the integer arrays of a model file.

The ranges of all activations are fixed by the clamps of `network.py`, so no samples are needed: every row gets the
finest power-of-two scale at which its sums stay provably exact (`integer.quantise_rows`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.exact.context import EXACT_ACTIVATION_LIMIT, HIDDEN_BITS, STATE_BITS
from zippy_batch.codecs.exact.mixture import END_BITS, LOGIT_BITS, MEAN_BITS, SCALE_BITS
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, MIXTURE, ExactNetwork, Plane, Step
from zippy_batch.codecs.integer import quantise_rows
from zippy_batch.codecs.latent.features import ONE

FINEST = 22
"""Largest exponent of a row: shifts end there (`integer.prove`)."""


def model_arrays(network: ExactNetwork) -> dict[str, NDArray[Any]]:
    """The arrays of a model file."""
    out: dict[str, NDArray[Any]] = {}
    for name in CONTEXT_PLANES:
        plane = network.planes[name]
        assert isinstance(plane, Plane)
        out |= _plane_arrays(name, plane)
    return out


def _plane_arrays(name: str, plane: Plane) -> dict[str, NDArray[Any]]:
    layers: dict[str, Any] = {"static": plane.static, "ends": plane.end_taps}
    layers |= {f"seen.{seen}": layer for seen, layer in zip(CONTEXT_PLANES[name], plane.seen, strict=True)}
    layers |= {f"taps.{g}": layer for g, layer in enumerate(plane.taps)}
    weights = {k: _array(layer.weight) / ONE for k, layer in layers.items()}
    out = _layer(f"{name}.state", weights, _array(plane.static.bias), dict.fromkeys(weights, ONE), STATE_BITS)
    for k, step in enumerate(plane.end_steps):
        assert isinstance(step, Step)
        out |= _step_arrays(f"{name}.ends.{k}", step, END_BITS)
    scales = np.array([*(MEAN_BITS,) * MIXTURE, *(SCALE_BITS,) * MIXTURE, *(LOGIT_BITS,) * (MIXTURE - 1)])
    for g, size in enumerate(plane.shape.groups):
        for k, step in enumerate(plane.group_steps(g)):
            out |= _step_arrays(f"{name}.{g}.{k}", step, np.repeat(scales, size))
    out[f"{name}.unit"] = np.rint(np.log2(plane.unit.numpy())).astype(np.int8)
    return out


def _step_arrays(name: str, step: Step, result_bits: int | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {}
    layers: list[tuple[str, Any]] = [(f"hidden.{i}", layer) for i, layer in enumerate(step.hidden)]
    bits = STATE_BITS
    for kind, layer in [*layers, ("out", step.out)]:
        weight = {"weight": _array(layer.weight) * 2.0**-bits}
        results = result_bits if kind == "out" else HIDDEN_BITS
        out |= _layer(f"{name}.{kind}", weight, _array(layer.bias), {"weight": EXACT_ACTIVATION_LIMIT}, results)
        bits = HIDDEN_BITS
    return out


def _layer(
    name: str,
    weights: dict[str, NDArray[np.float64]],
    bias: NDArray[np.float64],
    limits: dict[str, int],
    bits: int | NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """Integer arrays of a layer whose results are real values times 2^bits."""
    whole, offset, exponent = quantise_rows(weights, bias, limits, FINEST)
    out: dict[str, NDArray[Any]] = {f"{name}.{k}": w.astype(np.int16) for k, w in whole.items()}
    out[f"{name}.bias"] = offset.astype(np.int32)
    out[f"{name}.shift"] = (exponent - bits).astype(np.int8)
    return out


def _array(parameter: torch.Tensor) -> NDArray[np.float64]:
    return parameter.detach().double().numpy()
