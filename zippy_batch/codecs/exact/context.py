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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zippy_batch.codecs.exact import passes
from zippy_batch.codecs.exact.blocks import Blocks, Indices
from zippy_batch.codecs.exact.features import END_FEATURES, LINEAR, STATIC_FEATURES, group_inputs
from zippy_batch.codecs.exact.mixture import UNIT_BITS, Outputs, Quantisers, Scale
from zippy_batch.codecs.exact.network import CONTEXT_PLANES, ENDS, PARAMETERS, PlaneShape
from zippy_batch.codecs.exact.passes import Inputs
from zippy_batch.codecs.integer import Arrays, RoundedSum, fetch, load_layer, prove
from zippy_batch.codecs.latent.features import ONE
from zippy_batch.errors import ModelError

Floats = NDArray[np.float32]
_Around = tuple[NDArray[np.int64], Inputs, Floats]
"""What a group adds to states: which blocks around are new to one, by its stage; what blocks show; and the columns by
which they are seen."""

EXACT_ACTIVATION_LIMIT = 255
STATE_BITS, HIDDEN_BITS = 5, 6
"""Activations are real values times 2^this."""
CHUNK_ROWS = 1024
"""Blocks that pass through the layers at once: few enough to stay in a cache, and calls to be few."""


def _bits(blocks: Sequence[int]) -> int:
    return sum(1 << k for k in blocks)


_EDGES, _CORNERS, _ALL = _bits((1, 3, 5, 7)), _bits((0, 2, 6, 8)), _bits(range(9))
EARLIER = {k: np.array(sets) for k, sets in {1: [0], 2: [0, _EDGES], 3: [0, _CORNERS, _EDGES]}.items()}
"""By number of stages: of a block in each of them, the neighbours that are in earlier ones, as bits, numbered row by
row. What those add to its state is added before it is coded; what the others do, before it is coded in the next group.
"""
LATER = {k: _ALL - sets for k, sets in EARLIER.items()}


class Known(NamedTuple):
    """A plane that is being coded."""

    image: Indices
    """(R,) number of each block's image in the batch."""
    ends: Indices
    """(R,) in an encoder all, in a decoder those decoded so far, and 0 for others."""
    coefficients: NDArray[np.int16]
    """(R, 64), likewise."""

    def where(self, rows: Indices) -> tuple[Indices, Indices, Indices]:
        """As the kernels of `mixture.py` want it."""
        return rows, self.image, self.ends


class Coder(Protocol):
    """The entropy coder's side of a traversal. Rows are numbers of blocks of the plane, ascending."""

    def open(self, plane: str, blocks: Blocks) -> Known:
        """Begin with a plane."""
        ...

    def code_ends(self, known: Known, rows: Indices, outputs: Outputs) -> None:
        """The ends of these blocks, coded or decoded."""
        ...

    def code(self, known: Known, rows: Indices, first: int, outputs: Outputs, how: Quantisers) -> None:
        """The coefficients first..first+G-1 of these blocks, up to their ends, coded or decoded."""
        ...


@dataclass(frozen=True)
class _Layers:
    """The layers of a step, each a matrix (inputs, outputs)."""

    hidden: tuple[tuple[torch.Tensor, Floats], ...]
    """With their biases."""
    out: torch.Tensor
    scale: Scale

    def outputs(self, settled: Floats) -> Outputs:
        """What blocks of these states are coded with."""
        x = torch.from_numpy(settled)
        for weight, bias in self.hidden:
            x = torch.mm(x, weight)
            passes.settle_hidden(x.numpy(), bias, EXACT_ACTIVATION_LIMIT)
        return Outputs(torch.mm(x, self.out).numpy(), self.scale)


@dataclass(frozen=True)
class _CoefficientGroup:
    """Coefficients that are coded together, or the ends."""

    start: int
    stop: int
    """Coefficients start..stop-1; of the ends 0 and 0."""
    steps: Sequence[_Layers]
    """Of its stages."""
    most_inputs: int
    """That a block makes; 0 of the last."""
    taps: Floats
    """(9 * E, S) the columns by which they are seen from the blocks around; (0, S) where nothing comes after them."""


class IntegerPlane:
    """The integer layers of one plane. Raises ModelError for layers that are not there or not exact."""

    def __init__(self, name: str, shape: PlaneShape, arrays: Arrays) -> None:
        self._name = name
        self._shape = shape
        spans = shape.spans()
        inputs = {"static": STATIC_FEATURES}
        inputs |= {f"seen.{seen}": group_inputs(0, 64) + END_FEATURES for seen in CONTEXT_PLANES[name]}
        inputs["ends"] = 9 * END_FEATURES
        inputs |= {f"taps.{g}": 9 * group_inputs(a, b) for g, (a, b, _) in enumerate(spans) if b < 64}
        p = f"{name}.state"
        weights = {k: fetch(arrays, f"{p}.{k}", "int16", shape.state, count) for k, count in inputs.items()}
        bias = fetch(arrays, f"{p}.bias", "int32", shape.state)
        shift = fetch(arrays, f"{p}.shift", "int8", shape.state)
        self._state = RoundedSum.of(prove(p, weights, bias, shift, dict.fromkeys(inputs, ONE)))
        columns = {k: w.numpy() for k, w in self._state.weights.items()}
        self._seen = {k: _whole_block(columns[f"seen.{k}"]) for k in CONTEXT_PLANES[name]}
        self._unit = fetch(arrays, f"{name}.unit", "int8", 64)
        if self._unit.min() < 0 or self._unit.max() > UNIT_BITS:
            raise ModelError(f"model: {name}.unit must be 0..{UNIT_BITS}")
        steps = [self._load_step(f"{name}.ends.{k}", ENDS, arrays) for k in range(shape.end_stages)]
        self._groups = [_CoefficientGroup(0, 0, steps, END_FEATURES, np.ascontiguousarray(columns["ends"].T))]
        for g, (a, b, stages) in enumerate(spans):
            steps = [self._load_step(f"{name}.{g}.{k}", PARAMETERS * (b - a), arrays) for k in range(stages)]
            taps = np.zeros((0, shape.state), np.float32)
            if b < 64:
                around = np.split(columns[f"taps.{g}"], 9, axis=1)
                taps = np.concatenate([passes.columns_of(weight, b - a) for weight in around])
            self._groups.append(_CoefficientGroup(a, b, steps, group_inputs(a, b) if b < 64 else 0, taps))

    def _load_step(self, p: str, outputs: int, arrays: Arrays) -> _Layers:
        widths = [self._shape.state, *self._shape.hidden]
        hidden = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layer = RoundedSum.of(load_layer(arrays, f"{p}.hidden.{i}", b, a, EXACT_ACTIVATION_LIMIT))
            hidden.append((layer.weights["a"].T.contiguous(), layer.bias.numpy()))
        out = load_layer(arrays, f"{p}.out", outputs, widths[-1], EXACT_ACTIVATION_LIMIT)
        scale = Scale.of(out.bias.numpy(), fetch(arrays, f"{p}.out.shift", "int8", outputs))
        return _Layers(tuple(hidden), out.weights["a"].T.contiguous(), scale)

    def traverse(self, blocks: Blocks, seen: Mapping[str, Inputs], coder: Coder) -> Known:
        """Visit all groups in coding order; seen: of the planes coded before, what `inputs_of` makes of them."""
        known = coder.open(self._name, blocks)
        state = self._begin(blocks, seen)
        before: _Around = (EARLIER[1], passes.no_inputs(len(state), 0), np.zeros((0, self._shape.state), np.float32))
        for group in self._groups:
            begins, rows = passes.choose(known.ends, group.start, blocks.grid, len(group.steps))
            if not len(rows):
                break
            members = [rows[a:b] for a, b in pairwise(begins.tolist())]
            inputs = passes.no_inputs(len(state), group.most_inputs)
            self._code_group(group, (blocks, known, coder), (state, before, inputs), members)
            before = LATER[len(members)], inputs, group.taps
        return known

    def _code_group(
        self,
        group: _CoefficientGroup,
        visit: tuple[Blocks, Known, Coder],
        sums: tuple[Floats, _Around, Inputs],
        members: Sequence[Indices],
    ) -> None:
        """Code a group of these blocks, stage after stage. sums: the state of all blocks, as far as it is added up;
        what the group before adds to it; and what blocks show of this one, which is filled in."""
        blocks, known, coder = visit
        state, before, inputs = sums
        now = EARLIER[len(members)], inputs, group.taps
        how = Quantisers.of(blocks.steps[:, group.start : group.stop], self._unit[group.start : group.stop])
        for layers, mine in zip(group.steps, members, strict=True):
            for begin in range(0, len(mine), CHUNK_ROWS):
                rows = mine[begin : begin + CHUNK_ROWS]
                settled = np.empty((len(rows), state.shape[1]), np.float32)
                passes.advance(state, rows, blocks.grid, before, now, EXACT_ACTIVATION_LIMIT, settled)
                outputs = layers.outputs(settled)
                if group.stop:
                    coder.code(known, rows, group.start, outputs, how)
                else:
                    coder.code_ends(known, rows, outputs)
            if group.stop == 0:
                passes.list_ends(known.ends, mine, 0, inputs)
            elif group.stop < 64:
                span = group.start, group.stop
                passes.list_coefficients(known.coefficients, span, mine, known.image, blocks.steps, inputs)

    def _begin(self, blocks: Blocks, seen: Mapping[str, Inputs]) -> Floats:
        """(R, S) the state before anything of this plane is coded."""
        static = self._state.accumulate("static", torch.from_numpy(blocks.features)).numpy()
        state = np.take(static, blocks.feature_row, axis=0)
        for name, inputs in seen.items():
            part = np.zeros((len(inputs[0]), self._shape.state), np.float32)
            passes.add_own(part, inputs, self._seen[name])
            passes.add_rows(part, blocks.places[name], state)
        return state


def inputs_of(known: Known, blocks: Blocks) -> Inputs:
    """A plane as the planes coded after it see it."""
    rows = np.arange(len(known.ends))
    inputs = passes.no_inputs(len(rows), 64 + LINEAR + END_FEATURES)
    passes.list_coefficients(known.coefficients, (0, 64), rows, known.image, blocks.steps, inputs)
    passes.list_ends(known.ends, rows, 2 * 64 + LINEAR, inputs)
    return inputs


def _whole_block(weight: Floats) -> Floats:
    """Weights (S, inputs) of all of a block, its end last -> (columns, S)."""
    coefficients, end = np.split(weight, [group_inputs(0, 64)], axis=1)
    return np.concatenate([passes.columns_of(coefficients, 64), end.T])
