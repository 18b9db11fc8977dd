"""Training on several workers with Ray Train: PyTorch's process group, one process per worker.

The run's directory must be one that all of them see. Each loads the same start or checkpoint, draws batches of its own,
and averages its gradients with the others'. The first one and the driver speak through two files there:

status.jsonl    first worker -> driver: a line when it begins, then one per `TrainingStatus`, after its checkpoint
stop               driver -> first worker: end this step, save, and be done
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zippy_batch.errors import WorkerError, ZippyError
from zippy_batch.run.executor import WAIT_NOTICE_S, WorkerLayout, connected
from zippy_batch.training.process_group import ProcessGroup
from zippy_batch.training.run import Score, TrainingStatus
from zippy_batch.training.train_job import TrainJob

STATUS_FILE = "status.jsonl"
STOP = "stop"
_POLL_S = 0.5
"""Time between two looks at these files."""


def work_on_ray(
    job: TrainJob,
    layout: WorkerLayout,
    say: Callable[[str], None],
    watch: Callable[[TrainingStatus], None],
    is_stopped: Callable[[], bool],
) -> None:
    """`TrainJob.work`, by a layout. Raises what a worker raised, and WorkerError when one died."""
    stop, statuses = job.run / STOP, job.run / STATUS_FILE
    for file in (stop, statuses):
        file.unlink(missing_ok=True)
    with connected(layout.address, cpus=layout.workers * layout.threads):
        fit = _Fit(job, layout)
        say(f"training on {layout.workers} Ray workers")
        report = Report(statuses)
        patient_until = time.monotonic() + WAIT_NOTICE_S
        # Ray Train takes Ctrl-C for itself in the main thread alone, and would end the run without a checkpoint
        while not fit.is_over(_POLL_S):
            if is_stopped():
                stop.touch()
            for status in report.news():
                watch(status)
            if not report.has_begun and time.monotonic() > patient_until:
                patient_until += WAIT_NOTICE_S
                wanted = f"{layout.threads} CPUs" + (" and a GPU" if layout.gpus else "")
                say(f"waiting for the cluster: {layout.workers} workers need {wanted} each")
        for status in report.news():
            watch(status)
        if fit.error is not None:
            raise _cause(fit.error, job.run) from fit.error


class Report:
    """What the first worker has written so far."""

    def __init__(self, file: Path) -> None:
        self._file, self._read = file, 0
        self.has_begun = False

    def news(self) -> Iterator[TrainingStatus]:
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read().splitlines(keepends=True)
        for line in lines:
            # the rest of a line that is being written comes with the next look
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            self.has_begun = True
            fields = json.loads(line)
            if fields is not None:
                yield TrainingStatus(**{**fields, "score": Score(**fields["score"])})


class Reporter:
    """Writes it."""

    def __init__(self, run: Path) -> None:
        self._file = run / STATUS_FILE
        self._write(None)

    def report(self, status: TrainingStatus) -> None:
        self._write(asdict(status))

    def _write(self, fields: dict[str, Any] | None) -> None:
        with self._file.open("a") as stream:
            stream.write(json.dumps(fields) + "\n")


class StopFile:
    """Whether the driver wants the run to stop, looked up no more often than is needed."""

    def __init__(self, run: Path) -> None:
        self._file, self._next = run / STOP, 0.0

    def is_there(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _POLL_S
        return self._file.exists()


class _Fit:
    """Ray Train at work, in a thread of its own."""

    def __init__(self, job: TrainJob, layout: WorkerLayout) -> None:
        import ray.train
        from ray.train.torch import TorchTrainer

        needs: dict[str, float] = {"CPU": layout.threads, "GPU": layout.gpus}
        self._trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job, "threads": layout.threads},
            scaling_config=ray.train.ScalingConfig(
                num_workers=layout.workers, use_gpu=layout.gpus > 0, resources_per_worker=needs
            ),
            run_config=ray.train.RunConfig(name="ray", storage_path=str(job.run)),
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        # SystemExit too: Ray ends threads with it
        except BaseException as error:
            self.error = error

    def is_over(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def _cause(error: BaseException, run: Path) -> ZippyError:
    """What a worker raised on purpose, or that it failed."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        # Ray Train wraps what a worker raised, to keep where that was
        raised = getattr(failure, "_base_exc", failure)
        if isinstance(raised, ZippyError):
            return raised
    return WorkerError(f"training on Ray failed: {error}; the same command goes on from {run}")


def _work(config: dict[str, Any]) -> None:
    import ray.train
    import torch

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    group = ProcessGroup(context.get_world_rank(), context.get_world_size())
    job: TrainJob = config["job"]
    task = job.task()
    watch = Reporter(job.run).report if group.rank == 0 else _ignore
    job.work(task, watch, StopFile(job.run).is_there, group)


def _ignore(status: TrainingStatus) -> None:
    pass
