"""A training run: one directory with cached pools, a checkpoint and a log, which the same command goes on from.

What is trained is a `Task`; the loop knows nothing of pictures or coefficients. The learning rates are constant for a
part of the run and then fall, as a cosine, to 2 %; what gets exported is an exponential moving average of the weights,
the best of those that were scored on the held-out images.

Several workers hold the same weights and average their gradients (`ProcessGroup`), so that a step sees as many batches
as there are workers. The first worker keeps the time and writes the files.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zippy_batch.errors import ModelError, UsageError, WriteError
from zippy_batch.stores.atomic_file import replacing
from zippy_batch.training.muon import Muon
from zippy_batch.training.process_group import SINGLE_PROCESS, ProcessGroup

CHECKPOINT = "checkpoint.pt"
_KEYS = {"card", "network", "average", "best", "optimisers", "seconds", "step", "best_loss"}
MOST_MISSES = 20
"""Losses in a row that are not finite, after which a run gives up."""
_SCORING = 1
"""Raised when scores are taken on other images than before, and the best one so far means nothing any more."""
_WARM_UP_STEPS = 200
_AVERAGE_DECAY = 0.998


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a run learns."""

    minutes: float = 90.0
    """Length of the whole run in minutes of training time, over all resumed parts."""
    positions: int = 3456
    """8x8 blocks per step and worker; 96 thumbnails of 42x42."""
    rate_adam: float = 1e-3
    rate_muon: float = 0.004
    decay_from: float = 0.4
    """Share of the run after which the learning rates fall."""
    bfloat16: bool = False
    """Compute in bfloat16 where that is harmless: faster on devices that have its instructions."""
    checkpoint_minutes: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """How good a network is on what was held out."""

    loss: float
    text: str
    """Text for the log and for people."""


class Task(Protocol):
    """What a run trains."""

    @property
    def network(self) -> nn.Module: ...

    def card(self) -> dict[str, Any]:
        """What the checkpoint needs to build the network again."""
        ...

    def is_hidden(self, name: str) -> bool:
        """Whether the matrix of this name is one between hidden layers, which Muon takes."""
        ...

    def reach(self, share: float) -> bool:
        """Told before every step which share of the run is over; True where scores mean something else from now on."""
        ...

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Loss of one batch, the next one drawn by `rng`."""
        ...

    def evaluate(self, network: Any) -> Score: ...


class Average:
    """Exponential moving average of the weights; buffers are as the network has them."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self._learnt = [name for name, _ in network.named_parameters()]

    def update(self, network: nn.Module, step: int) -> None:
        decay = min(_AVERAGE_DECAY, (step + 1) / (step + 20))
        current = network.state_dict()
        learnt = [self.weights[k] for k in self._learnt]
        torch._foreach_lerp_(learnt, [current[k] for k in self._learnt], 1 - decay)
        for name in self.weights.keys() - set(self._learnt):
            self.weights[name].copy_(current[name])


@dataclass
class TrainingState:
    """Where a run stands."""

    seconds: float = 0.0
    """Time of training."""
    step: int = 0
    best_loss: float = math.inf
    """The least loss so far on what was held out."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The averaged weights that had it."""


@dataclass(frozen=True)
class TrainingStatus:
    """What a run says when it has looked at the held-out images and written its checkpoint."""

    minutes: float
    total_minutes: float
    step: int
    loss: float
    """Mean over the batches since the last time."""
    score: Score
    is_best: bool

    def line(self) -> str:
        at = f"{self.minutes:.1f} of {self.total_minutes:g} min  step {self.step}  loss {self.loss:.4f}"
        return f"{at}  {self.score.text}{'' if self.is_best else '  (was better before)'}"


def _ignore(status: TrainingStatus) -> None:
    pass


def _never() -> bool:
    return False


def fit(
    task: Task,
    run: Path,
    o: Schedule,
    watch: Callable[[TrainingStatus], None] = _ignore,
    is_stopped: Callable[[], bool] = _never,
    group: ProcessGroup = SINGLE_PROCESS,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingState:
    """Train in `run` until its minutes are used up or `is_stopped`, and leave a checkpoint either way.

    Raises ModelError when it diverges, and OSError where a checkpoint cannot be written; the one before is whole then.
    """
    network = task.network
    optimisers = _optimisers(task, o)
    average = Average(network)
    checkpoint = run / CHECKPOINT
    progress = _resume(checkpoint, network, average, optimisers) if checkpoint.exists() else TrainingState()
    rng = np.random.default_rng([o.seed, progress.step, group.rank])
    torch.manual_seed((o.seed << 40) + (progress.step << 10) + group.rank)
    begun, saved, misses = clock() - progress.seconds, progress.seconds, 0
    total, recent = 60 * o.minutes, list[float]()
    stopped = False
    while progress.seconds < total and not stopped:
        factor = rate_factor(progress.seconds / total, progress.step, o.decay_from)
        for optimiser, rate in zip(optimisers, (o.rate_adam, o.rate_muon), strict=True):
            for parameters in optimiser.param_groups:
                parameters["lr"] = rate * factor
        if task.reach(progress.seconds / total):
            progress.best_loss = math.inf
        with _precision(o, network):
            loss = task.loss(rng)
        network.zero_grad(set_to_none=True)
        loss.backward()
        said = group.share(network, [clock() - begun, float(is_stopped())])
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            misses = 0
            for optimiser in optimisers:
                optimiser.step()
            average.update(network, progress.step)
        else:
            misses += 1
            _give_up(misses, progress.step)
        progress.step += 1
        recent.append(loss.item())
        progress.seconds, stopped = said[0], said[1] > 0
        if progress.seconds - saved > 60 * o.checkpoint_minutes or progress.seconds >= total or stopped:
            saved = progress.seconds
            if group.rank == 0:
                status = _look(task, average, progress, o, float(np.mean(recent)))
                _save(checkpoint, task, average, optimisers, progress)
                with (run / "log.txt").open("a") as log:
                    print(status.line(), file=log)
                watch(status)
            recent.clear()
            # looking at the held-out images is no training
            begun = clock() - saved
    return progress


def rate_factor(progress: float, step: int, decay_from: float) -> float:
    """What the learning rates are multiplied with after this share of the run."""
    factor = min(1.0, (step + 1) / _WARM_UP_STEPS)
    if progress > decay_from:
        factor *= max(0.02, 0.5 * (1 + math.cos(math.pi * (progress - decay_from) / (1 - decay_from))))
    return factor


def _optimisers(task: Task, o: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices."""
    hidden = [p for name, p in task.network.named_parameters() if p.ndim == 2 and task.is_hidden(name)]
    ids = {id(p) for p in hidden}
    rest = [p for p in task.network.parameters() if id(p) not in ids]
    adam = torch.optim.AdamW(rest, o.rate_adam, betas=(0.9, 0.98), weight_decay=0.0)
    precision = torch.bfloat16 if o.bfloat16 else torch.float32
    return [adam, Muon(hidden, o.rate_muon, precision=precision)]


def _precision(o: Schedule, network: nn.Module) -> AbstractContextManager[Any]:
    if not o.bfloat16:
        return nullcontext()
    return torch.autocast(next(network.parameters()).device.type, torch.bfloat16)


def _give_up(misses: int, step: int) -> None:
    if misses == MOST_MISSES:
        raise ModelError(
            f"training diverged at step {step}: {misses} losses in a row are not finite; "
            "run again with a lower learning rate (--rate 0.5); --restart begins anew instead of at the last checkpoint"
        )


def _look(task: Task, average: Average, progress: TrainingState, o: Schedule, loss: float) -> TrainingStatus:
    """Score the averaged weights, and keep them if they are the best so far; the network's own come back."""
    own = {k: v.clone() for k, v in task.network.state_dict().items()}
    task.network.load_state_dict(average.weights)
    with torch.no_grad():
        score = task.evaluate(task.network)
    task.network.load_state_dict(own)
    # a score that is no number, or that says nothing, is no reason to keep older weights
    is_best = not score.loss > progress.best_loss
    if is_best:
        progress.best_loss = score.loss if math.isfinite(score.loss) else progress.best_loss
        progress.best = {k: v.clone() for k, v in average.weights.items()}
    return TrainingStatus(progress.seconds / 60, o.minutes, progress.step, loss, score, is_best)


def _save(
    checkpoint: Path, task: Task, average: Average, optimisers: Sequence[torch.optim.Optimizer], progress: TrainingState
) -> None:
    stream = io.BytesIO()
    torch.save(
        {
            "card": task.card(),
            "network": task.network.state_dict(),
            "average": average.weights,
            "optimisers": [p.state_dict() for p in optimisers],
            "seconds": progress.seconds,
            "step": progress.step,
            "best_loss": progress.best_loss,
            "best": progress.best,
            "scoring": _SCORING,
        },
        stream,
    )
    replace_file(checkpoint, stream.getvalue())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all. Raises OSError."""
    try:
        with replacing(path) as new:
            new.write_bytes(data)
    except WriteError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; what was there before is still whole", str(path)) from error


def _resume(
    checkpoint: Path, network: nn.Module, average: Average, optimisers: Sequence[torch.optim.Optimizer]
) -> TrainingState:
    state = load_checkpoint(checkpoint)
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise UsageError(f"{checkpoint} is of another network than the one to train: {error}") from error
    device = next(network.parameters()).device
    average.weights = {k: v.to(device) for k, v in state["average"].items()}
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    best_loss = state["best_loss"] if state.get("scoring") == _SCORING else math.inf
    return TrainingState(state["seconds"], state["step"], best_loss, state["best"])


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """card, network, average and best (weights), optimisers, seconds, step, best_loss. Raises ModelError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ModelError(f"{checkpoint} is no checkpoint ({error}); --restart begins anew") from error
    if not state.keys() >= _KEYS:
        raise ModelError(f"{checkpoint} lacks {', '.join(sorted(_KEYS - state.keys()))}; --restart begins anew")
    return state
