"""What every worker of a training run needs: options and files -> task -> checkpoint -> model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from zippy_batch.codecs.exact.codec import ExactCodec
from zippy_batch.codecs.integer import FLOAT32_EXACT, fast_type, recording_bounds
from zippy_batch.codecs.latent.codec import LatentCodec
from zippy_batch.codecs.model_file import Model, model_from_bytes, serialise
from zippy_batch.config import TrainOptions
from zippy_batch.run.executor import usable_cpus
from zippy_batch.training import exact, latent
from zippy_batch.training.coefficients import CoefficientPool, CoefficientSpecs
from zippy_batch.training.coefficients import cached_pools as cached_coefficients
from zippy_batch.training.coefficients import chosen_specs as chosen_coefficients
from zippy_batch.training.coefficients import default_specs as mixed_coefficients
from zippy_batch.training.pictures import Pool, PoolSpec, cached_pools, chosen_specs, default_specs
from zippy_batch.training.process_group import SINGLE_PROCESS, ProcessGroup
from zippy_batch.training.run import CHECKPOINT, Schedule, Task, TrainingStatus, fit, load_checkpoint
from zippy_batch.training.warm_start import exact_network, latent_network

_CHECKPOINT_MINUTES = (0.5, 5.0)
"""Minutes between two checkpoints: a tenth of the run, within these."""
_NOTICE = "Trained by a user of zippy-batch on images of their own; it may be used as those images may."


@dataclass(frozen=True)
class TrainJob:
    """What every worker of a run needs; pickles."""

    options: TrainOptions
    run: Path
    paths: tuple[Path, ...]
    """Files to train on."""
    sizes: dict[tuple[int, int], int]
    digest: str
    """Digest of the files that the run began with."""
    start: Model | None
    device: str

    def work(
        self,
        task: Task,
        watch: Callable[[TrainingStatus], None],
        is_stopped: Callable[[], bool],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Train until the minutes are used up, or go on; the checkpoint holds the outcome."""
        o = self.options
        task.network.to(self.device)
        schedule = Schedule(
            minutes=o.minutes,
            positions=latent.POSITIONS if o.codec == "latent" else exact.EXACT_POSITIONS,
            # what a trained network has learnt is lost at the rate that a new one begins with
            rate_adam=1e-3 * o.rate * (0.6 if self.start else 1.0),
            rate_muon=0.004 * o.rate * (0.6 if self.start else 1.0),
            decay_from=0.25 if self.start else 0.4,
            bfloat16=o.codec == "latent" and fast_type(torch.device(self.device)) is torch.bfloat16,
            checkpoint_minutes=float(np.clip(o.minutes / 10, *_CHECKPOINT_MINUTES)),
            seed=o.seed,
        )
        fit(task, self.run, schedule, watch, is_stopped, group)

    def task(self) -> Task:
        """The network before the first step, and what it is trained on, from the run's cache once it is there. Raises
        UsageError where there is too little."""
        torch.manual_seed(self.options.seed)
        if self.options.codec == "exact":
            pools = self.coefficients()
            coefficients = exact_network(self.start) if self.start else exact.new_network(pools)
            return exact.ExactTask(coefficients, pools)
        specs, pictures = self.pictures()
        network = latent_network(self.start) if self.start else latent.new_network()
        return latent.LatentTask(network, pictures, specs, loss=self.options.loss)

    def pictures(self) -> tuple[list[PoolSpec], list[Pool]]:
        o = self.options
        specs = default_specs() if o.is_mixed() else chosen_specs(self.sizes, o.takes_own(), o.shrunk_sizes())
        specs = [replace(spec, mirror=o.mirror) for spec in specs]
        return specs, cached_pools(self.paths, specs, self.run / "pools", usable_cpus(), self.digest)

    def coefficients(self) -> list[CoefficientPool]:
        o = self.options
        specs: CoefficientSpecs = (
            mixed_coefficients()
            if o.is_mixed()
            else chosen_coefficients(o.takes_own(), o.shrunk_sizes(), sum(self.sizes.values()))
        )
        thumbnails = tuple(replace(spec, mirror=o.mirror) for spec in specs.thumbnails)
        specs = replace(specs, thumbnails=thumbnails)
        return cached_coefficients(self.paths, specs, self.run / "pools", usable_cpus(), self.digest)

    def export(self, sources: Sequence[str]) -> bytes:
        """The best weights of the run's checkpoint -> the bytes of a model file."""
        o, state = self.options, load_checkpoint(self.run / CHECKPOINT)
        card = {
            "name": o.name,
            "training": {
                "steps": state["step"],
                "minutes": round(state["seconds"] / 60, 1),
                "images": len(self.paths),
                "sizes": o.sizes,
                "loss": o.loss,
                "from": self.start.id if self.start else None,
                "version": metadata.version("zippy-batch"),
            },
            "sources": list(sources),
            "notice": o.notice or _NOTICE,
        }
        if o.codec == "exact":
            coefficients = exact.build(state["card"])
            coefficients.load_state_dict(state["best"])
            return with_proof(exact.export(coefficients.eval(), card))
        network = latent.build(state["card"])
        network.load_state_dict(state["best"])
        specs, pools = self.pictures()
        return with_proof(latent.export(network.eval(), pools, specs, card))


def with_proof(data: bytes) -> bytes:
    """A model file with what loading it proves in its card: no sum of its integer layers can reach 2^24."""
    model = model_from_bytes(data)
    with recording_bounds() as bounds:
        ExactCodec(model) if model.codec == "exact" else LatentCodec(model)
    proof = {"layers": len(bounds), "largest_sum": max(bounds.values()), "limit": FLOAT32_EXACT}
    return serialise(model.arrays, {**model.card, "exactness": proof})
