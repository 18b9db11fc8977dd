"""A training run: one directory with cached pools, a checkpoint and a log, which the same command goes on from.

What is trained is a `Task`; the loop knows nothing of pictures or coefficients. The learning rates are constant for a
part of the run and then fall, as a cosine, to 2 %; what gets exported is an exponential moving average of the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zippy_batch.errors import ModelError, UsageError
from zippy_batch.training.muon import Muon

MOST_MISSES = 20
"""Losses in a row that are not finite, after which a run gives up."""
_WARM_UP_STEPS = 200
_AVERAGE_DECAY = 0.998


@dataclass(frozen=True)
class TrainOptions:
    minutes: float = 90.0
    """Length of the whole run in minutes of training time, over all resumed parts."""
    positions: int = 3456
    """8x8 blocks per step; 96 thumbnails of 42x42."""
    rate_adam: float = 1e-3
    rate_muon: float = 0.004
    decay_from: float = 0.4
    """Share of the run after which the learning rates fall."""
    bfloat16: bool = False
    """Compute in bfloat16 where that is harmless: faster on processors that have its instructions."""
    threads: int = 2
    checkpoint_minutes: float = 5.0
    seed: int = 0


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

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Of one batch, the next one drawn by `rng`."""
        ...

    def evaluate(self, network: Any) -> str:
        """How good a network is on what was held out, for the log."""
        ...


class Average:
    """Exponential moving average of the weights."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        decay = min(_AVERAGE_DECAY, (step + 1) / (step + 20))
        current = network.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [current[k] for k in self.weights], 1 - decay)


@dataclass
class _Progress:
    seconds: float = 0.0
    step: int = 0


def fit(task: Task, run: Path, o: TrainOptions) -> None:
    """Train in `run` until its minutes are used up. Raises ModelError when it diverges."""
    network = task.network
    optimisers = _optimisers(task, o)
    average = Average(network)
    checkpoint = run / "checkpoint.pt"
    progress = _resume(checkpoint, network, average, optimisers) if checkpoint.exists() else _Progress()
    rng = np.random.default_rng([o.seed, progress.step])
    torch.manual_seed(o.seed + progress.step)
    begun, saved, misses = time.monotonic() - progress.seconds, progress.seconds, 0
    total, recent = 60 * o.minutes, list[float]()
    with (run / "log.txt").open("a", buffering=1) as log:
        while progress.seconds < total:
            factor = rate_factor(progress.seconds / total, progress.step, o.decay_from)
            for optimiser, rate in zip(optimisers, (o.rate_adam, o.rate_muon), strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate * factor
            with _precision(o):
                loss = task.loss(rng)
            network.zero_grad(set_to_none=True)
            loss.backward()
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
            progress.seconds = time.monotonic() - begun
            if progress.seconds - saved > 60 * o.checkpoint_minutes or progress.seconds >= total:
                saved = progress.seconds
                _save(checkpoint, task, average, optimisers, progress)
                found = _evaluate(task, average)
                at = f"{saved / 60:.1f} min  step {progress.step}"
                log.write(f"{at}  loss {np.mean(recent):.4f}  norm {norm:.2f}  {found}\n")
                recent.clear()
                # looking at the held-out images is no training
                begun += time.monotonic() - begun - saved


def rate_factor(progress: float, step: int, decay_from: float) -> float:
    """What the learning rates are multiplied with after this share of the run."""
    factor = min(1.0, (step + 1) / _WARM_UP_STEPS)
    if progress > decay_from:
        factor *= max(0.02, 0.5 * (1 + math.cos(math.pi * (progress - decay_from) / (1 - decay_from))))
    return factor


def _optimisers(task: Task, o: TrainOptions) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices."""
    hidden = [p for name, p in task.network.named_parameters() if p.ndim == 2 and task.is_hidden(name)]
    ids = {id(p) for p in hidden}
    rest = [p for p in task.network.parameters() if id(p) not in ids]
    return [torch.optim.AdamW(rest, o.rate_adam, betas=(0.9, 0.98), weight_decay=0.0), Muon(hidden, o.rate_muon)]


def _precision(o: TrainOptions) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if o.bfloat16 else nullcontext()


def _give_up(misses: int, step: int) -> None:
    if misses == MOST_MISSES:
        raise ModelError(
            f"training diverged at step {step}: {misses} losses in a row are not finite; "
            "lower the learning rates and resume"
        )


def _evaluate(task: Task, average: Average) -> str:
    """Of the averaged weights; the network's own come back."""
    own = {k: v.clone() for k, v in task.network.state_dict().items()}
    task.network.load_state_dict(average.weights)
    with torch.no_grad():
        found = task.evaluate(task.network)
    task.network.load_state_dict(own)
    return found


def _save(
    checkpoint: Path, task: Task, average: Average, optimisers: Sequence[torch.optim.Optimizer], progress: _Progress
) -> None:
    temporary = checkpoint.with_suffix(".tmp")
    torch.save(
        {
            "card": task.card(),
            "network": task.network.state_dict(),
            "average": average.weights,
            "optimisers": [p.state_dict() for p in optimisers],
            "seconds": progress.seconds,
            "step": progress.step,
        },
        temporary,
    )
    temporary.replace(checkpoint)


def _resume(
    checkpoint: Path, network: nn.Module, average: Average, optimisers: Sequence[torch.optim.Optimizer]
) -> _Progress:
    state = load_checkpoint(checkpoint)
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise UsageError(f"{checkpoint} is of another network than the one to train: {error}") from error
    average.weights = state["average"]
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return _Progress(state["seconds"], state["step"])


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """card, network, average (weights), optimisers, seconds, step."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return state
