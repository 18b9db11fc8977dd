"""Training on several workers with Ray Train: PyTorch's process group, one process per worker.

The run's directory must be one that all of them see. Each loads the same start or checkpoint, draws batches of its own,
and averages its gradients with the others'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zippy_batch.cluster import connected
from zippy_batch.errors import WorkerError, ZippyError
from zippy_batch.training.job import TrainJob
from zippy_batch.training.run import Standing
from zippy_batch.training.team import Team


def work_on_ray(job: TrainJob, address: str | None, watch: Callable[[str], None]) -> None:
    """Raises WorkerError when a worker fails."""
    import ray.train
    from ray.train.torch import TorchTrainer

    with connected(address, job.workers):
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job},
            scaling_config=ray.train.ScalingConfig(num_workers=job.workers, use_gpu=job.device == "cuda"),
            run_config=ray.train.RunConfig(name="ray", storage_path=str(job.run)),
        )
        watch(f"training on {job.workers} Ray workers; {job.run / 'log.txt'} says where it stands")
        try:
            trainer.fit()
        except ZippyError:
            raise
        except Exception as error:
            raise WorkerError(f"training on Ray failed: {error}; the same command goes on from {job.run}") from error


def _work(config: dict[str, Any]) -> None:
    import ray.train

    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())

    def watch(standing: Standing) -> None:
        print(standing.line(), flush=True)

    job: TrainJob = config["job"]
    job.work(job.task(), watch, lambda: False, team)
