"""Ray is started once for all of these; each test runs a few trivial units on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from zippy_batch.config import RunOptions
from zippy_batch.errors import SourceError, UsageError, WorkerError
from zippy_batch.run.executor import (
    WorkerLayout,
    _workers_that_fit,
    choose_layout,
    choose_training_layout,
    connected,
    run_units,
    settle_device,
)
from zippy_batch.run.quarantine import retry
from zippy_batch.run.report import Done, Tick

RAY = WorkerLayout(workers=2, threads=1, on_ray=True)
IN_PROCESS = WorkerLayout(workers=1, threads=2, on_ray=False)


@dataclass(frozen=True)
class Unit:
    index: int
    die_until: int = 0
    """Attempts that take their worker with them."""
    fail: bool = False


@dataclass(frozen=True)
class Answer:
    index: int
    done: Done
    process: int


@dataclass(frozen=True)
class Job:
    notes: Path
    """Directory where every attempt leaves a file."""
    broken: bool = False

    def start(self, threads: int) -> Callable[[Unit, Tick], Answer]:
        if self.broken:
            raise UsageError("cannot load")

        def work(unit: Unit, tick: Tick) -> Answer:
            attempt = 1 + len(list(self.notes.glob(f"{unit.index}-*")))
            (self.notes / f"{unit.index}-{attempt}").touch()
            if attempt <= unit.die_until:
                os._exit(1)
            if unit.fail:
                raise SourceError(f"{unit.index} is gone")
            tick(Done(1, 10, 5))
            return Answer(unit.index, Done(1, 10, 5), os.getpid())

        return work

    def after_death(self, unit: Unit, deaths: int, reason: str) -> Unit:
        return retry(unit, deaths, reason)


def ignore(done: Done) -> None:
    pass


@pytest.fixture(params=["in process", "ray"])
def layout(request: pytest.FixtureRequest) -> WorkerLayout:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        return RAY
    return IN_PROCESS


def test_every_unit_is_done_once_and_pulled_when_a_worker_is_free(layout: WorkerLayout, tmp_path: Path) -> None:
    told: list[Done] = []
    answers: list[Answer] = []
    pulled = 0

    def units() -> Iterator[Unit]:
        nonlocal pulled
        for i in range(7):
            pulled += 1
            yield Unit(i)

    for answer in run_units(Job(tmp_path), units(), layout, told.append):
        answers.append(answer)
        assert pulled <= len(answers) + layout.workers + 1
    assert sorted(answer.index for answer in answers) == list(range(7))
    assert sum(told, Done()) == Done(7, 70, 35)
    assert ({answer.process for answer in answers} == {os.getpid()}) is not layout.on_ray


def test_what_a_unit_raises_arrives_as_it_is(layout: WorkerLayout, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="1 is gone"):
        list(run_units(Job(tmp_path), [Unit(0), Unit(1, fail=True)], layout, ignore))


def test_what_loading_raises_arrives_as_it_is(layout: WorkerLayout, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load"):
        list(run_units(Job(tmp_path, broken=True), [Unit(0)], layout, ignore))


def test_no_units_is_no_work(tmp_path: Path) -> None:
    assert list(run_units(Job(tmp_path), [], IN_PROCESS, ignore)) == []


@pytest.mark.usefixtures("ray_session")
def test_unit_of_a_dead_worker_is_done_by_another(tmp_path: Path) -> None:
    units = [Unit(0), Unit(1, die_until=1), Unit(2)]
    answers = list(run_units(Job(tmp_path), units, RAY, ignore))
    assert sorted(answer.index for answer in answers) == [0, 1, 2]
    assert len(list(tmp_path.glob("1-*"))) == 2


@pytest.mark.usefixtures("ray_session")
def test_workers_that_the_cluster_has_no_room_for_hold_nothing_up(tmp_path: Path) -> None:
    answers = list(run_units(Job(tmp_path), [Unit(i) for i in range(4)], WorkerLayout(3, 2, on_ray=True), ignore))
    assert sorted(answer.index for answer in answers) == [0, 1, 2, 3]
    assert len({answer.process for answer in answers}) == 1


@pytest.mark.usefixtures("ray_session")
def test_unit_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="shard 1: the worker crashed 3 times"):
        list(run_units(Job(tmp_path), [Unit(1, die_until=9)], RAY, ignore))


def test_small_jobs_stay_in_this_process() -> None:
    assert not choose_layout(2, 8_000, 1 << 20, "cpu", RunOptions()).on_ray
    assert not choose_layout(100, 400_000, 1 << 30, "cpu", RunOptions(workers=1)).on_ray
    assert not choose_layout(1, 4_000, 1 << 20, "cpu", RunOptions(workers=4)).on_ray


def test_big_jobs_and_named_clusters_go_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zippy_batch.run.executor.usable_cpus", lambda: 16)
    assert choose_layout(100, 400_000, 1 << 30, "cpu", RunOptions()) == WorkerLayout(16, 1, on_ray=True)
    assert choose_layout(10, 40_000, 1 << 20, "cpu", RunOptions(workers=4)) == WorkerLayout(4, 4, on_ray=True)
    assert choose_layout(1, 100, 1 << 20, "cpu", RunOptions(address="auto")).on_ray


def test_a_missing_gpu_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert settle_device("auto", None) == "cpu"
    with pytest.raises(UsageError, match="no usable GPU"):
        settle_device("cuda", None)


def test_a_team_has_room_on_the_cluster_or_is_refused() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 7.0}, {"memory": 1e9}]
    assert _workers_that_fit(nodes, 0, gpus=0) == (3, 4)
    assert _workers_that_fit(nodes, 5, gpus=0) == (5, 2)
    assert _workers_that_fit(nodes, 15, gpus=0) == (15, 1)
    assert _workers_that_fit([{"CPU": 2.0}], 0, gpus=0) == (1, 2)
    assert _workers_that_fit(nodes, 0, gpus=1) == (2, 4)
    assert _workers_that_fit(nodes, 1, gpus=1) == (1, 4)
    with pytest.raises(UsageError, match=r"--workers 16: each takes a CPU, and the cluster has room for 15; use fewer"):
        _workers_that_fit(nodes, 16, gpus=0)
    with pytest.raises(UsageError, match=r"--workers 3: each takes a CPU and a GPU, .* room for 2; .*--device cpu"):
        _workers_that_fit(nodes, 3, gpus=1)
    with pytest.raises(UsageError, match="room for 0"):
        _workers_that_fit([], 0, gpus=0)


def test_a_team_on_this_machine_has_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_training_layout("cpu", RunOptions()).on_ray is False
    assert choose_training_layout("cpu", RunOptions(workers=64)) == WorkerLayout(64, 1, on_ray=True)
    monkeypatch.setattr("zippy_batch.run.executor._gpus_here", lambda: 2)
    assert choose_training_layout("cuda", RunOptions(workers=2)).gpus == 1
    with pytest.raises(UsageError, match="--workers 3: each takes a GPU, and here are 2"):
        choose_training_layout("cuda", RunOptions(workers=3))


def test_a_port_that_nobody_listens_at_is_named_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    refusal = f"cannot join the Ray cluster at '{address}': Connection refused; is its head running"
    with pytest.raises(UsageError, match=refusal), connected(address, cpus=None):
        pass


def test_a_temporary_directory_that_is_too_long_for_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /long/ray/session/sockets/plasma_store")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setenv("RAY_TMPDIR", "/long")
    refusal = "its sockets, in /long, have longer names than the system allows; set RAY_TMPDIR to a short path"
    with pytest.raises(UsageError, match=refusal), connected(None, cpus=1):
        pass
