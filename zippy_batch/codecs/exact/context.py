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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codecs.exact.blocks import Blocks, Indices
from zippy_batch.codecs.exact.canvas import Neighbours, gather, write_coefficients, write_ends
from zippy_batch.codecs.exact.features import END_FEATURES, STATIC_FEATURES, group_inputs
from zippy_batch.codecs.exact.mixture import UNIT_BITS, Quantisers
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, ENDS, PARAMETERS, PlaneShape
from zippy_batch.codecs.integer import Arrays, IntegerSum, RoundedSum, fetch, load_layer, prove
from zippy_batch.codecs.latent.features import ONE
from zippy_batch.errors import ModelError

EXACT_ACTIVATION_LIMIT = 255
STATE_BITS, HIDDEN_BITS = 5, 6
"""Activations are real values times 2^this."""
CHUNK_ROWS = 2048
"""Blocks that pass through the layers at once: few enough to stay in a cache, and calls to be few."""

_EDGES, _CORNERS = (1, 3, 5, 7), (0, 2, 6, 8)
EARLIER: dict[int, tuple[Neighbours, ...]] = {1: ((),), 2: ((), _EDGES), 3: ((), _CORNERS, _EDGES)}
"""By number of stages: of a block in each of them, the neighbours that are in earlier ones. What those add to its state
is added before it is coded, what the others do when all stages are done."""


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
        shift: Indices,
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


class _Visit:
    """A traversal on its way: what is known of every block, and the state of those that have more to come."""

    def __init__(self, blocks: Blocks, coder: Coder, rows: Indices, state: Tensor) -> None:
        self.blocks, self.coder, self.rows, self.state = blocks, coder, rows, state
        self.ends = np.zeros(len(rows), np.int64)
        self.coefficients = np.zeros((len(rows), 64), np.int16)

    def keep(self, wanted: NDArray[np.bool_]) -> None:
        """Of the rows."""
        some = np.flatnonzero(wanted)
        self.rows, self.state = self.rows[some], _take(self.state, some)


@dataclass(frozen=True)
class _Stage:
    """Ends or a group of coefficients, as `_code_stages` codes them."""

    taps: str
    """Name of the weights by which they are seen from the blocks around."""
    inputs: int
    """Of one block."""
    steps: Sequence[_Layers]
    code: Callable[[Indices, NDArray[np.float32], Indices], None]
    """Rows, accumulated outputs, shifts: codes them and keeps what is found."""
    show: Callable[[Indices, NDArray[np.float32]], None]
    """Rows, canvas: writes the inputs that they make."""


class IntegerPlane:
    """The integer layers of one plane. Raises ModelError for layers that are not there or not exact."""

    def __init__(self, name: str, shape: PlaneShape, arrays: Arrays, device: torch.device) -> None:
        self._name = name
        self._shape = shape
        self._device = device
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
        self._parts: dict[tuple[str, Neighbours], Tensor] = {}
        """Columns of the state's weights by what `_taps` is asked for."""
        self._ends = [self._load_step(f"{name}.ends.{k}", ENDS, arrays) for k in range(shape.end_stages)]
        self._steps = [
            [self._load_step(f"{name}.{g}.{k}", PARAMETERS * (b - a), arrays) for k in range(stages)]
            for g, (a, b, stages) in enumerate(shape.spans())
        ]

    def _load_step(self, p: str, outputs: int, arrays: Arrays) -> _Layers:
        widths = [self._shape.state, *self._shape.hidden]
        hidden = [
            RoundedSum.of(load_layer(arrays, f"{p}.hidden.{i}", b, a, EXACT_ACTIVATION_LIMIT)).to(self._device)
            for i, (a, b) in enumerate(pairwise(widths))
        ]
        out = load_layer(arrays, f"{p}.out", outputs, widths[-1], EXACT_ACTIVATION_LIMIT).to(self._device)
        return _Layers(tuple(hidden), out, fetch(arrays, f"{p}.out.shift", "int8", outputs).astype(np.int64))

    def traverse(self, blocks: Blocks, seen: Mapping[str, Tensor], coder: Coder) -> NDArray[np.int16]:
        """Visit all steps in coding order; seen: of the planes coded before, what `inputs_of` makes of them. Returns
        the coefficients (R, 64)."""
        visit = _Visit(blocks, coder, np.arange(len(blocks.image)), self._begin(blocks, seen))
        self._code_ends(visit)
        for g, (start, stop, _) in enumerate(self._shape.spans()):
            visit.keep(visit.ends[visit.rows] >= start)
            if not len(visit.rows):
                break
            self._code_group(visit, g, start, stop)
        return visit.coefficients

    def _code_ends(self, visit: _Visit) -> None:
        blocks = visit.blocks

        def code(at: Indices, accumulated: NDArray[np.float32], shift: Indices) -> None:
            visit.ends[at] = visit.coder.code_ends(self._name, at, blocks.image[at], accumulated, shift)

        def show(at: Indices, canvas: NDArray[np.float32]) -> None:
            write_ends(visit.ends[at], blocks.centre[at], canvas)

        self._code_stages(visit, _Stage("ends", END_FEATURES, self._ends, code, show), 0)

    def _code_group(self, visit: _Visit, g: int, start: int, stop: int) -> None:
        blocks, ends = visit.blocks, visit.ends
        how = Quantisers.of(blocks.steps[:, start:stop], self._unit[start:stop])

        def code(at: Indices, accumulated: NDArray[np.float32], shift: Indices) -> None:
            image = blocks.image[at]
            found = visit.coder.code(self._name, at, image, ends[at], start, accumulated, shift, how)
            visit.coefficients[at, start:stop] = found

        def show(at: Indices, canvas: NDArray[np.float32]) -> None:
            found = visit.coefficients[at, start:stop]
            write_coefficients(found, start, blocks.image[at], blocks.steps, blocks.centre[at], canvas)

        stage = _Stage(f"taps.{g}", group_inputs(start, stop), self._steps[g], code, show)
        self._code_stages(visit, stage, stop)

    def _code_stages(self, visit: _Visit, what: _Stage, stop: int) -> None:
        """Code ends or a group of these blocks, stage after stage, and add what it says to the state of those that have
        a coefficient `stop`."""
        blocks, rows, state = visit.blocks, visit.rows, visit.state
        stages = len(what.steps)
        stage = blocks.stage(stages)[rows]
        canvas = np.zeros((blocks.canvas, what.inputs), np.float32)
        members = [np.flatnonzero(stage == k) for k in range(stages)]
        for k, layers in enumerate(what.steps):
            mine = members[k]
            at = rows[mine]
            now = state if stages == 1 else _take(state, mine)
            if k:
                now += self._taps(what.taps, EARLIER[stages][k], canvas, blocks, at)
                state.index_copy_(0, torch.from_numpy(mine).to(self._device), now)
            for part in _chunks(len(at)):
                what.code(at[part], self._accumulate(layers, now[part]), layers.shift)
            what.show(at, canvas)
        going_on = visit.ends[rows] >= stop
        for known, mine in zip(EARLIER[stages], members, strict=True):
            left = mine[going_on[mine]]
            if len(left):
                rest = tuple(n for n in range(9) if n not in known)
                added = self._taps(what.taps, rest, canvas, blocks, rows[left])
                state.index_add_(0, torch.from_numpy(left).to(self._device), added)

    def _begin(self, blocks: Blocks, seen: Mapping[str, Tensor]) -> Tensor:
        """(R, S) the state before anything of this plane is coded."""
        features = torch.from_numpy(blocks.features).to(self._device)
        state = _take(self._state.accumulate("static", features), blocks.feature_row)
        for name, inputs in seen.items():
            part = torch.nn.functional.linear(inputs, self._state.weights[f"seen.{name}"])
            # blocks of images without that plane take the row of zeros
            state += _take(torch.cat([part, part.new_zeros(1, part.shape[1])]), blocks.places[name])
        return state

    def _taps(self, name: str, which: Neighbours, canvas: NDArray[np.float32], blocks: Blocks, rows: Indices) -> Tensor:
        """What some of the blocks around these add to their state."""
        if (name, which) not in self._parts:
            weight = self._state.weights[name]
            parts = weight.view(len(weight), 9, -1)[:, list(which)]
            self._parts[name, which] = parts.reshape(len(weight), -1).T.contiguous()
        weight = self._parts[name, which]
        out = weight.new_empty(len(rows), weight.shape[1])
        for part in _chunks(len(rows)):
            found = torch.from_numpy(gather(canvas, blocks, rows[part], which)).to(self._device)
            torch.mm(found, weight, out=out[part])
        return out

    def _accumulate(self, step: _Layers, rows: Tensor) -> NDArray[np.float32]:
        """(R, outputs) the last layer's sums."""
        a = rows.clamp(-EXACT_ACTIVATION_LIMIT, EXACT_ACTIVATION_LIMIT + 0.5).floor_()
        for layer in step.hidden:
            a = layer.settle(layer.accumulate("a", a), 0, EXACT_ACTIVATION_LIMIT)
        return torch.nn.functional.linear(a, step.out.weights["a"], step.out.bias).cpu().numpy()

    def inputs_of(self, coefficients: NDArray[np.int16], ends: Indices, blocks: Blocks) -> Tensor:
        """Coefficients of this plane (R, 64) as the planes coded after it see them."""
        out = np.empty((len(ends), group_inputs(0, 64) + END_FEATURES), np.float32)
        rows = np.arange(len(ends))
        write_coefficients(coefficients, 0, blocks.image, blocks.steps, rows, out)
        write_ends(ends, rows, out)
        return torch.from_numpy(out).to(self._device)


def _take(rows: Tensor, numbers: Indices) -> Tensor:
    """Rows by number; three times as fast as an index in brackets."""
    return rows.index_select(0, torch.from_numpy(numbers).to(rows.device))


def _chunks(rows: int) -> list[slice]:
    return [slice(i, min(i + CHUNK_ROWS, rows)) for i in range(0, rows, CHUNK_ROWS)]
