"""The coefficient network in integers: what distributions are computed from, the same on every machine.

What `network.Plane` does in floats, with sums that are proved to be exact (`integer.py`):

    state    sum of static features, other planes, ends and coded coefficients   -> in 1/32, clamped to +-255
    hidden   layers                                                              -> in 1/64, clamped to 0..255
    out      sums that `mixture.py` rescales, PARAMETERS per coefficient or one per possible end

All inputs are integers within +-256. The state is a sum, and exact in any order: what a group of coefficients adds to
it is added when the group is coded, and only for the blocks that have more to come.

Letters: N images, R blocks of a plane, G coefficients of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.errors import ModelError
from zippy_batch.exact.blocks import Blocks, Indices
from zippy_batch.exact.features import (
    END_FEATURES,
    INPUT_LIMIT,
    LINEAR,
    STATIC_FEATURES,
    companding_table,
    end_table,
)
from zippy_batch.exact.mixture import UNIT_BITS, Quantisers
from zippy_batch.exact.network import CONTEXT_PLANES, ENDS, PARAMETERS, PlaneShape, group_inputs
from zippy_batch.integer import Arrays, IntegerSum, RoundedSum, fetch, load_layer, prove
from zippy_batch.latent.features import ONE

ACTIVATION_LIMIT = 255
STATE_BITS, HIDDEN_BITS = 5, 6
"""Activations are real values times 2^this."""
CHUNK_ROWS = 1024
"""Blocks that pass through the layers at once: few enough to stay in a core's cache."""


class Coder(Protocol):
    """The entropy coder's side of a traversal. Rows are numbers of blocks of the plane, ascending."""

    def code_ends(
        self, plane: str, rows: Indices, image: Indices, accumulated: NDArray[np.float32], shift: Indices
    ) -> NDArray[np.int16]:
        """(len(rows),) the ends of these blocks, coded or decoded."""
        ...

    def code(
        self,
        plane: str,
        rows: Indices,
        image: Indices,
        ends: Indices,
        first: int,
        accumulated: NDArray[np.float32],
        how: Quantisers,
    ) -> NDArray[np.int16]:
        """(len(rows), G) the coefficients first..first+G-1 of these blocks, up to their ends, coded or decoded."""
        ...


@dataclass(frozen=True)
class _Layers:
    """The layers of a step."""

    hidden: tuple[RoundedSum, ...]
    out: IntegerSum
    shift: Indices
    """Of the last layer's outputs: the kernels rescale them."""


class IntegerPlane:
    """The integer layers of one plane. Raises ModelError for layers that are not there or not exact."""

    def __init__(self, name: str, shape: PlaneShape, arrays: Arrays, device: torch.device) -> None:
        self._name = name
        self._shape = shape
        self._device = device
        self._companding = torch.from_numpy(companding_table().astype(np.float32)).to(device)
        self._end_table = torch.from_numpy(end_table().astype(np.float32)).to(device)
        inputs = {"static": STATIC_FEATURES}
        inputs |= {f"seen.{seen}": group_inputs(0, 64) + END_FEATURES for seen in CONTEXT_PLANES[name]}
        inputs["ends"] = 9 * END_FEATURES
        inputs |= {f"taps.{g}": 9 * group_inputs(a, b) for g, (a, b, _) in enumerate(shape.spans()) if b < 64}
        p = f"{name}.state"
        weights = {k: fetch(arrays, f"{p}.{k}", "int16", shape.state, count) for k, count in inputs.items()}
        bias = fetch(arrays, f"{p}.bias", "int32", shape.state)
        shift = fetch(arrays, f"{p}.shift", "int8", shape.state)
        self._state = RoundedSum.of(prove(p, weights, bias, shift, dict.fromkeys(inputs, ONE))).to(device)
        self._unit = fetch(arrays, f"{name}.unit", "int8", 64)
        if self._unit.min() < 0 or self._unit.max() > UNIT_BITS:
            raise ModelError(f"model: {name}.unit must be 0..{UNIT_BITS}")
        self._ends = [self._load_step(f"{name}.ends.{k}", ENDS, arrays) for k in range(shape.end_stages)]
        self._steps = [
            [self._load_step(f"{name}.{g}.{k}", PARAMETERS * (b - a), arrays) for k in range(stages)]
            for g, (a, b, stages) in enumerate(shape.spans())
        ]

    def _load_step(self, p: str, outputs: int, arrays: Arrays) -> _Layers:
        widths = [self._shape.state, *self._shape.hidden]
        hidden = [
            RoundedSum.of(load_layer(arrays, f"{p}.hidden.{i}", b, a, ACTIVATION_LIMIT)).to(self._device)
            for i, (a, b) in enumerate(pairwise(widths))
        ]
        out = load_layer(arrays, f"{p}.out", outputs, widths[-1], ACTIVATION_LIMIT).to(self._device)
        return _Layers(tuple(hidden), out, fetch(arrays, f"{p}.out.shift", "int8", outputs).astype(np.int64))

    def traverse(self, blocks: Blocks, seen: Mapping[str, Tensor], coder: Coder) -> NDArray[np.int16]:
        """Visit all steps in coding order; seen: of the planes coded before, what `inputs_of` makes of them. Returns
        the coefficients (R, 64)."""
        state = self._begin(blocks, seen)
        ends, state = self._traverse_ends(blocks, state, coder)
        coefficients = np.zeros((len(ends), 64), np.int16)
        rows = np.arange(len(ends))
        for g, (start, stop, stages) in enumerate(self._shape.spans()):
            how = Quantisers.of(blocks.steps[:, start:stop], self._unit[start:stop], np.zeros(0, np.int64))
            stage = blocks.stage(stages)[rows]
            canvas = torch.zeros(blocks.canvas, group_inputs(start, stop), device=self._device)
            for k, layers in enumerate(self._steps[g]):
                mine = np.flatnonzero(stage == k)
                at = rows[mine]
                image, now = blocks.image[at], state if stages == 1 else _take(state, mine)
                if k:
                    now = now + self._taps(f"taps.{g}", canvas, blocks, at)
                how = Quantisers(how.step, how.octaves, how.unit, layers.shift)
                for part in _chunks(len(at)):
                    accumulated = self._accumulate(layers, now[part])
                    values = coder.code(self._name, at[part], image[part], ends[at[part]], start, accumulated, how)
                    coefficients[at[part], start:stop] = values
                if stop < 64:
                    canvas[blocks.centre[at]] = self._inputs(coefficients[at, start:stop], blocks, image, start)
            if stop == 64:
                break
            more = np.flatnonzero(ends[rows] >= stop)
            rows, state = rows[more], _take(state, more)
            if not len(rows):
                break
            state += self._taps(f"taps.{g}", canvas, blocks, rows)
        return coefficients

    def _begin(self, blocks: Blocks, seen: Mapping[str, Tensor]) -> Tensor:
        """(R, S) the state before anything of this plane is coded."""
        features = torch.from_numpy(blocks.features).to(self._device)
        state = _take(self._state.accumulate("static", features), blocks.feature_row)
        for name, inputs in seen.items():
            part = torch.nn.functional.linear(inputs, self._state.weights[f"seen.{name}"])
            # blocks of images without that plane take the row of zeros
            state += _take(torch.cat([part, part.new_zeros(1, part.shape[1])]), blocks.places[name])
        return state

    def _traverse_ends(self, blocks: Blocks, state: Tensor, coder: Coder) -> tuple[Indices, Tensor]:
        """The ends (R,), and the state with them."""
        ends = np.zeros(len(blocks.image), np.int64)
        canvas = torch.zeros(blocks.canvas, END_FEATURES, device=self._device)
        stage = blocks.stage(len(self._ends))
        for k, layers in enumerate(self._ends):
            at = np.flatnonzero(stage == k)
            now = _take(state, at)
            if k:
                now += self._taps("ends", canvas, blocks, at)
            for part in _chunks(len(at)):
                accumulated = self._accumulate(layers, now[part])
                rows = at[part]
                ends[rows] = coder.code_ends(self._name, rows, blocks.image[rows], accumulated, layers.shift)
            canvas[blocks.centre[at]] = self._end_table[torch.from_numpy(ends[at])]
        state += self._taps("ends", canvas, blocks, np.arange(len(ends)))
        return ends, state

    def _taps(self, name: str, canvas: Tensor, blocks: Blocks, rows: Indices) -> Tensor:
        """What the neighbourhoods of these blocks add to the state."""
        weight = self._state.weights[name]
        around = blocks.around(rows)
        out = canvas.new_empty(len(rows), len(weight))
        for part in _chunks(len(rows)):
            inputs = _take(canvas, around[part].reshape(-1)).view(-1, weight.shape[1])
            torch.mm(inputs, weight.T, out=out[part])
        return out

    def _accumulate(self, step: _Layers, rows: Tensor) -> NDArray[np.float32]:
        """(R, outputs) the last layer's sums."""
        a = rows.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT + 0.5).floor_()
        for layer in step.hidden:
            a = layer.settle(layer.accumulate("a", a), 0, ACTIVATION_LIMIT)
        return torch.nn.functional.linear(a, step.out.weights["a"], step.out.bias).cpu().numpy()

    def _inputs(self, coefficients: NDArray[np.int16], blocks: Blocks, image: Indices, start: int) -> Tensor:
        """Coefficients (R, G) start..start+G-1 as the network sees them, (R, `group_inputs`): companded, with and
        without their sign, and the first LINEAR of a block also linearly."""
        steps = torch.from_numpy(blocks.steps[image, start : start + coefficients.shape[1]].astype(np.float32))
        value = torch.from_numpy(coefficients.astype(np.float32)).mul_(steps).to(self._device)
        limit = len(self._companding) - 1
        value.clamp_(-limit, limit)
        size = self._companding[value.abs().int()]
        straight = (value[:, : max(0, LINEAR - start)] * 0.25).floor_().clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        return torch.cat([size * value.sign(), straight, size], 1)

    def inputs_of(self, coefficients: NDArray[np.int16], ends: Indices, blocks: Blocks) -> Tensor:
        """Coefficients of this plane (R, 64) as the planes coded after it see them."""
        return torch.cat(
            [self._inputs(coefficients, blocks, blocks.image, 0), self._end_table[torch.from_numpy(ends)]], 1
        )


def _take(rows: Tensor, numbers: Indices) -> Tensor:
    """Rows by number; three times as fast as an index in brackets."""
    return rows.index_select(0, torch.from_numpy(numbers).to(rows.device))


def _chunks(rows: int) -> list[slice]:
    return [slice(i, min(i + CHUNK_ROWS, rows)) for i in range(0, rows, CHUNK_ROWS)]
