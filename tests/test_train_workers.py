"""Training on Ray workers: what the driver hears of it, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_model

from zippy_batch.codecs.model_file import load_model
from zippy_batch.config import RunOptions, TrainOptions
from zippy_batch.errors import ModelError, WorkerError
from zippy_batch.run.executor import WorkerLayout
from zippy_batch.training import latent, ray_workers
from zippy_batch.training.ray_workers import STATUS_FILE, Report, Reporter, work_on_ray
from zippy_batch.training.run import Score, TrainingStatus
from zippy_batch.training.session import train
from zippy_batch.training.train_job import TrainJob


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model to start from; those that come of it are counted on fewer samples."""
    monkeypatch.setattr(latent, "export", partial(latent.export, batches_of_samples=12))
    (tmp_path / "tiny.safetensors").write_bytes(tiny_model().data)
    return str(tmp_path / "tiny.safetensors")


def adapt(model: str, minutes: float) -> TrainOptions:
    return TrainOptions(start=model, minutes=minutes, device="cpu", sizes="32x24")


@pytest.mark.usefixtures("ray_session")
def test_workers_on_ray_train_one_network(drawn_faces: Path, tmp_path: Path, start: str) -> None:
    said: list[str] = []
    options, run_options = adapt(start, 0.02), RunOptions(workers=2)
    report = train([drawn_faces], tmp_path / "mine.safetensors", options, run_options, watch=said.append)
    assert report.steps > 0
    assert load_model(str(tmp_path / "mine.safetensors")).id == report.model_id
    assert any("of 0.02 min  step" in line for line in said)


@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_run_on_ray_keeps_the_best_so_far(drawn_faces: Path, tmp_path: Path, start: str) -> None:
    begun = tmp_path / "mine.training" / STATUS_FILE

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    said: list[str] = []
    options = adapt(start, 30)
    with pytest.raises(KeyboardInterrupt):
        train([drawn_faces], tmp_path / "mine.safetensors", options, RunOptions(workers=2), watch=said.append)
    assert load_model(str(tmp_path / "mine.safetensors")).card["training"]["steps"] > 0
    assert (tmp_path / "mine.training" / "checkpoint.pt").exists()
    assert any("of 30 min  step" in line for line in said)


def test_the_driver_reads_what_the_first_worker_writes(tmp_path: Path) -> None:
    report = Report(tmp_path / STATUS_FILE)
    assert list(report.news()) == []
    assert not report.has_begun
    reporter = Reporter(tmp_path)
    assert list(report.news()) == []
    assert report.has_begun
    statuses = [TrainingStatus(i, 30, 100 * i, 0.5, Score(1.0, "good"), True) for i in range(3)]
    for status in statuses[:2]:
        reporter.report(status)
    with (tmp_path / STATUS_FILE).open("a") as stream:
        stream.write('{"minutes": 2')
    assert list(report.news()) == statuses[:2]
    assert list(report.news()) == []


def test_what_a_worker_raised_on_purpose_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    def fail(failure: BaseException) -> Callable[[TorchTrainer], None]:
        def fit(trainer: TorchTrainer) -> None:
            raise failure

        return fit

    monkeypatch.setattr(ray_workers, "connected", lambda address, cpus: nullcontext())
    job = TrainJob(TrainOptions(), tmp_path, (), {}, "", None, "cpu")
    for failure, expected in (
        (ray.train.WorkerGroupError("failed", {0: ModelError("diverged")}), ModelError),
        (ray.train.WorkerGroupError("failed", {0: ValueError("no")}), WorkerError),
        (SystemExit(0), WorkerError),
    ):
        monkeypatch.setattr(TorchTrainer, "fit", fail(failure))
        with pytest.raises(expected):
            work_on_ray(job, WorkerLayout(1, 1, on_ray=True), print, print, lambda: False)
