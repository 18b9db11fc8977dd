"""The float network that training fits and `export.py` turns into integers: quantised DCT coefficients -> bits.

Components are coded one after the other, the second and third before the first, each as a plane of 8x8 blocks:

    Cb  -->  Cr (sees Cb)  -->  Y (sees Cb and Cr at its place)

In a plane, first every block's end is coded, the place of its last coefficient that is not 0; then the coefficients up
to it, in zigzag groups. Ends and the early groups come in stages of blocks (`stages_of`). What is coded so far is
summed up, linearly, in a state of every block, from itself and its eight neighbours:

    static features, other planes ---+
    ends ----------------------------+--> state --> hidden layers --> out (per step)
    coefficients of coded groups ----+              \\-> 64 logits of the end, or
                                                     \\-> mixture of 3 logistics per coefficient

Blocks that have ended take no further part: that saves half of the work at 178x218. Activations are clamped to the
ranges that the integer model has, so that nothing is lost when they become integers.

Letters: N images, h w grid, R rows (blocks), G coefficients of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zippy_batch.codecs.exact.features import (
    END_FEATURES,
    INPUT_LIMIT,
    LINEAR,
    STATIC_FEATURES,
    companding_table,
    end_table,
    group_inputs,
)
from zippy_batch.codecs.latent.features import ONE

MIXTURE = 3
PARAMETERS = 3 * MIXTURE - 1
"""Of one coefficient: means, scales (octaves), and MIXTURE - 1 logits that break a stick."""
ENDS = 64
"""Places where a block may end."""
STATE_LIMIT = 255 / 32
HIDDEN_LIMIT = 255 / 64
SCALE_OCTAVES = (-5.0, 9.0)
"""Range of log2 of a logistic's scale, in quantisation steps."""

CONTEXT_PLANES: dict[str, tuple[str, ...]] = {"cb": (), "cr": ("cb",), "y": ("cb", "cr")}
"""Planes in coding order, and what each is predicted from."""


@dataclass(frozen=True)
class PlaneShape:
    groups: tuple[int, ...]
    """Coefficients per group, in zigzag order; 64 in all."""
    stages: tuple[int, ...]
    """Stages of blocks of each group: 3, 2 or 1."""
    end_stages: int
    state: int
    """Width of the state."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers of each step."""

    def spans(self) -> list[tuple[int, int, int]]:
        """First coefficient, the one after the last, and stages of each group."""
        stops = np.cumsum(self.groups).tolist()
        return [(b - n, b, k) for n, b, k in zip(self.groups, stops, self.stages, strict=True)]


@dataclass(frozen=True)
class ExactArchitecture:
    luma: PlaneShape = PlaneShape((1, 2, 3, 4, 5, 6, 7, 8, 28), (3, 2, 2, 2, 1, 1, 1, 1, 1), 3, 160, (96, 96))
    chroma: PlaneShape = PlaneShape((1, 2, 3, 4, 11, 43), (3, 2, 1, 1, 1, 1), 3, 96, (64, 64))

    def shape(self, plane: str) -> PlaneShape:
        return self.luma if plane == "y" else self.chroma

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(card: dict[str, Any]) -> ExactArchitecture:
        """Raises KeyError, TypeError or ValueError for what `to_dict` does not write."""
        return ExactArchitecture(_shape(card["luma"]), _shape(card["chroma"]))


_MAX_WIDTH, _MAX_LAYERS = 4096, 8


def _shape(card: dict[str, Any]) -> PlaneShape:
    groups, stages, hidden = (tuple(int(v) for v in card[k]) for k in ("groups", "stages", "hidden"))
    shape = PlaneShape(groups, stages, int(card["end_stages"]), int(card["state"]), hidden)
    if len(groups) != len(stages) or min(groups) < 1 or sum(groups) != 64:
        raise ValueError(f"groups {groups} of stages {stages}")
    # a group that has several stages is also input, and the last one is none
    if not {*stages, shape.end_stages} <= {1, 2, 3} or stages[-1] != 1:
        raise ValueError(f"stages {stages}, {shape.end_stages}")
    if not 1 <= len(hidden) <= _MAX_LAYERS or not {shape.state, *hidden} <= set(range(1, _MAX_WIDTH + 1)):
        raise ValueError(f"widths of layers {shape.state}, {hidden}")
    return shape


def stages_of(row: NDArray[np.int64], column: NDArray[np.int64], stages: int) -> NDArray[np.int64]:
    """Number of the stage of each block: of two, a checkerboard's halves; of three, even rows and columns, odd rows and
    columns, the rest."""
    odd = (row + column) % 2
    return {1: odd * 0, 2: odd, 3: np.where(odd == 1, 2, row % 2)}[stages]


@dataclass(frozen=True)
class Seen:
    """A plane's coefficients (N, h, w, 64) as the network sees them, in -1..1."""

    signed: Tensor
    size: Tensor
    linear: Tensor
    """(N, h, w, LINEAR)"""
    ends: Tensor
    """(N, h, w) int64."""
    end_features: Tensor
    """(N, h, w, END_FEATURES)"""

    @staticmethod
    def of(c: Tensor, steps: Tensor) -> Seen:
        """Of coefficients (N, h, w, 64), float32 integers, with steps (N, 64)."""
        value = (c * steps[:, None, None]).clamp(1 - len(_COMPANDING), len(_COMPANDING) - 1)
        size = _COMPANDING.to(c.device)[value.abs().long()] / ONE
        linear = (value[..., :LINEAR] / 4).floor().clamp(-INPUT_LIMIT, INPUT_LIMIT) / ONE
        there = c != 0
        there[..., 0] = True
        ends = 63 - there.flip(-1).to(torch.uint8).argmax(-1)
        return Seen(value.sign() * size, size, linear, ends, _END_TABLE.to(c.device)[ends] / ONE)

    def group(self, start: int, stop: int) -> Tensor:
        """(N, h, w, `group_inputs`)"""
        parts = [self.signed[..., start:stop], self.linear[..., start : min(stop, LINEAR)], self.size[..., start:stop]]
        return torch.cat(parts, -1)

    def whole(self) -> Tensor:
        """What planes coded later see."""
        return torch.cat([self.group(0, 64), self.end_features], -1)


_COMPANDING = torch.from_numpy(companding_table().astype(np.float32))
_END_TABLE = torch.from_numpy(end_table().astype(np.float32))


def _neighbourhood(x: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, h * w, 9 C): each block's 3x3 neighbourhood, zeros outside."""
    n, h, w, _ = x.shape
    padded = nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    parts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return torch.cat(parts, -1).reshape(n, h * w, -1)


class Step(nn.Module):
    """The layers that give one stage of a group its distributions."""

    def __init__(self, shape: PlaneShape, outputs: int) -> None:
        super().__init__()
        widths = [shape.state, *shape.hidden]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        self.out = nn.Linear(widths[-1], outputs)
        for layer, inputs in zip(layers, widths, strict=False):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: Tensor) -> Tensor:
        """(R, S) -> (R, outputs)."""
        a = state.clamp(-STATE_LIMIT, STATE_LIMIT)
        for layer in self.hidden:
            a = layer(a).clamp(0, HIDDEN_LIMIT)
        return self.out(a).float()


class Plane(nn.Module):
    """One component's network."""

    def __init__(self, shape: PlaneShape, planes_before: int) -> None:
        super().__init__()
        self.shape = shape
        self.static = nn.Linear(STATIC_FEATURES, shape.state)
        self.seen = nn.ModuleList(_summand(group_inputs(0, 64) + END_FEATURES, shape) for _ in range(planes_before))
        self.end_taps = _summand(9 * END_FEATURES, shape)
        self.end_steps = nn.ModuleList(Step(shape, ENDS) for _ in range(shape.end_stages))
        # nothing is coded after the last group
        self.taps = nn.ModuleList(_summand(9 * group_inputs(a, b), shape) for a, b, _ in shape.spans() if b < 64)
        self.steps = nn.ModuleList(
            nn.ModuleList(Step(shape, PARAMETERS * (b - a)) for _ in range(stages)) for a, b, stages in shape.spans()
        )
        self.unit: Tensor
        self.register_buffer("unit", torch.ones(64))
        nn.init.zeros_(self.static.bias)
        nn.init.normal_(self.static.weight, std=1 / math.sqrt(STATIC_FEATURES))
        with torch.no_grad():
            for layers in chain.from_iterable(self.group_steps(g) for g in range(len(shape.groups))):
                layers.out.bias.view(PARAMETERS, -1)[MIXTURE : 2 * MIXTURE] = _FIRST_OCTAVES[:, None]

    def group_steps(self, group: int) -> list[Step]:
        """The layers of each stage of a group."""
        return [layers for layers in self.steps[group].children() if isinstance(layers, Step)]

    def forward(self, own: Seen, c: Tensor, steps: Tensor, static: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Bits of the ends and of each group (N, 1 + groups).

        c (N, h, w, 64) integers, steps (N, 64), static (N or 1, h * w, STATIC_FEATURES) in 0..1, before: `Seen.whole`
        of the planes before at each block's place (N, h * w, ...), none for grey images.
        """
        n, h, w, _ = c.shape
        state = self.static(static)
        for layer, seen in zip(self.seen, before, strict=False):
            state = state + layer(seen)
        state = state.expand(n, h * w, -1)
        ends = own.ends.view(n, h * w)
        row, column = (v.reshape(-1) for v in np.indices((h, w)))

        def stages(count: int) -> list[Tensor]:
            numbers = [np.flatnonzero(stages_of(row, column, count) == k) for k in range(count)]
            return [torch.from_numpy(at).to(c.device) for at in numbers]

        def earlier(taps: nn.Module, inputs: Tensor, coded: list[Tensor], at: Tensor) -> Tensor:
            """What the stages coded so far add to the state at `at`."""
            mask = c.new_zeros(h * w)
            mask[torch.cat(coded)] = 1
            return taps(_neighbourhood(inputs * mask.view(1, h, w, 1))[:, at])

        spent = c.new_zeros(n)
        coded: list[Tensor] = []
        for layers, at in zip(self.end_steps, stages(self.shape.end_stages), strict=True):
            rows = state[:, at]
            if coded:
                rows = rows + earlier(self.end_taps, own.end_features, coded, at)
            loss = nn.functional.cross_entropy(layers(rows).flatten(0, 1), ends[:, at].flatten(), reduction="none")
            spent = spent + loss.view(n, -1).sum(1) / math.log(2)
            coded.append(at)
        bits = [spent]
        state = state + self.end_taps(_neighbourhood(own.end_features))
        flat = c.view(n, h * w, 64)
        for g, (start, stop, count) in enumerate(self.shape.spans()):
            inputs = own.group(start, stop)
            spent, coded = c.new_zeros(n), []
            for layers, at in zip(self.group_steps(g), stages(count), strict=True):
                rows = state[:, at]
                if coded:
                    rows = rows + earlier(self.taps[g], inputs, coded, at)
                coded.append(at)
                image, place = torch.nonzero(ends[:, at] >= start, as_tuple=True)
                if not len(image):
                    continue
                here = at[place]
                each = _mixture_bits(
                    layers(rows[image, place]),
                    flat[image, here, start:stop],
                    self.unit[start:stop] / steps[image, start:stop],
                    ends[image, here, None] - torch.arange(start, stop, device=c.device),
                    start,
                )
                spent = spent.index_add(0, image, each)
            bits.append(spent)
            if stop < 64:
                state = state + self.taps[g](_neighbourhood(inputs))
        return torch.stack(bits, 1)


_FIRST_OCTAVES = torch.tensor([0.0, -1.5, -3.0])


def _summand(inputs: int, shape: PlaneShape) -> nn.Linear:
    """A layer that adds to the state."""
    layer = nn.Linear(inputs, shape.state, bias=False)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs))
    return layer


def _mixture_bits(o: Tensor, c: Tensor, relative: Tensor, left: Tensor, start: int) -> Tensor:
    """Bits (R,) of coefficients c (R, G) under parameters o (R, PARAMETERS * G), with `relative` the units in
    quantisation steps and `left` how far away the block's end is, (R, G) both; start is the first one's number."""
    o = o.view(len(o), PARAMETERS, -1)
    mean = o[:, :MIXTURE] * relative[:, None]
    sharp = torch.exp2(-(o[:, MIXTURE : 2 * MIXTURE] + relative[:, None].log2()).clamp(*SCALE_OCTAVES))
    first = torch.sigmoid(o[:, 2 * MIXTURE])
    second = (1 - first) * torch.sigmoid(o[:, 2 * MIXTURE + 1])
    weight = torch.stack([first, second, 1 - first - second], 1)

    def mass(value: Tensor | float, of: slice | tuple[Tensor, Tensor]) -> Tensor:
        m, s, p = ((v[:, :, of] if isinstance(of, slice) else v[of[0], :, of[1]]) for v in (mean, sharp, weight))
        d = value - m
        return (p * (torch.sigmoid((d + 0.5) * s) - torch.sigmoid((d - 0.5) * s))).sum(1) * (1 - 2.0**-12)

    bits = -torch.log2(mass(c[:, None], slice(None)) + 2.0**-16) * (left >= 0)
    # the last coefficient of a block is known not to be 0, unless it is DC
    row, column = torch.nonzero(
        (left == 0) & (torch.arange(start, start + c.shape[1], device=c.device) > 0), as_tuple=True
    )
    known = torch.log2((1 - mass(0.0, (row, column))).clamp(min=2.0**-14))
    return bits.index_put((row, column), known, accumulate=True).sum(1)


class ExactNetwork(nn.Module):
    """cb, cr and y, each a `Plane`."""

    def __init__(self, architecture: ExactArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.planes = nn.ModuleDict({p: Plane(architecture.shape(p), len(k)) for p, k in CONTEXT_PLANES.items()})
