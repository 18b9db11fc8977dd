"""Run units of work in this process or on Ray, and hand their results back as they come.

The only importer of Ray. A job says what a worker loads (`start`); a unit says what to do with it. Units are pulled
when a worker is free for them, so a driver with millions of files ahead of it holds a few units.
A worker that dies is replaced and its unit is done again elsewhere, which is safe because units commit by renaming.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from zippy_batch.config import RunOptions
from zippy_batch.errors import UsageError, WorkerError
from zippy_batch.run.report import Done, Tick

MAX_FAILED_STARTS = 3
"""Workers that die before their first unit, before the run gives up."""
PORT_S = 10.0
"""How long the head of a cluster has to take a connection."""
WAIT_NOTICE_S = 60.0
"""A run that has had no result for so long says what it is waiting for."""
RAY_PAYS_IMAGES = 30_000
"""Below it, starting Ray and loading a model in each worker takes longer than it saves."""
RAY_PAYS_BYTES = 1 << 30
THREADS_PER_WORKER = 4
"""More gain little: half of a worker's time is Python code, one thread at a time."""
OBJECT_STORE_BYTES = 256 << 20
"""What an embedded Ray gets: it carries lists of files and small reports."""

_log = logging.getLogger(__name__)


class HasDone(Protocol):
    @property
    def done(self) -> Done: ...


Unit = TypeVar("Unit")
Result = TypeVar("Result", bound=HasDone)
ResultOut = TypeVar("ResultOut", bound=HasDone, covariant=True)


class Job(Protocol[Unit, ResultOut]):
    """What every worker of a run needs; pickles."""

    def start(self, threads: int) -> Callable[[Unit, Tick], ResultOut]:
        """Called once in each worker."""
        ...

    def after_death(self, unit: Unit, deaths: int, reason: str) -> Unit:
        """The unit as it is to be tried next, called in the driver when a worker has died at it for the nth time.

        Raises WorkerError to give up.
        """
        ...


@dataclass(frozen=True)
class WorkerLayout:
    """How the work is shared out."""

    workers: int
    threads: int
    """Threads of each worker; they change the speed, and no byte."""
    on_ray: bool
    address: str | None = None
    gpus: int = 0
    """Per worker."""


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle_device(device: str, address: str | None) -> str:
    """auto -> cuda or cpu, by what the cluster has when one is named, else by this machine.

    Raises UsageError for a GPU that is not there.
    """
    if device == "cpu":
        return device
    if address is not None:
        with connected(address, cpus=None):
            there = _cluster_total("GPU") >= 1
    else:
        import torch

        there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UsageError("--device cuda: there is no usable GPU; choose --device cpu or auto")
    return "cuda" if there else "cpu"


def choose_layout(units: int, images: int, source_bytes: int, device: str, run: RunOptions) -> WorkerLayout:
    """Ray when a cluster is named or the job is worth starting it for; otherwise threads in this process."""
    cpus = usable_cpus()
    if run.address is not None:
        return WorkerLayout(run.workers, 0, on_ray=True, address=run.address, gpus=int(device == "cuda"))
    gpus = _gpus_here() if device == "cuda" else 0
    most = min(units, gpus if device == "cuda" else cpus)
    big = images >= RAY_PAYS_IMAGES or source_bytes >= RAY_PAYS_BYTES
    workers = min(run.workers, units) if run.workers else (most if big else 1)
    if workers <= 1:
        return WorkerLayout(1, min(cpus, THREADS_PER_WORKER), on_ray=False)
    threads = max(1, min(cpus // workers, THREADS_PER_WORKER))
    return WorkerLayout(workers, threads, on_ray=True, gpus=int(device == "cuda"))


def choose_training_layout(device: str, run: RunOptions) -> WorkerLayout:
    """Chooses who trains one network together: one worker, here, unless several or a cluster are named.

    On a cluster without a number, one worker for each GPU, or for each `THREADS_PER_WORKER` CPUs. Raises UsageError for
    more workers than there is room for, who would wait for ever.
    """
    gpus = int(device == "cuda")
    if run.address is None:
        workers = run.workers or 1
        if gpus and workers > _gpus_here():
            raise UsageError(
                f"--workers {workers}: each takes a GPU, and here are {_gpus_here()}; use fewer, or --device cpu"
            )
        return WorkerLayout(workers, max(1, min(usable_cpus() // workers, THREADS_PER_WORKER)), workers > 1, gpus=gpus)
    with connected(run.address, cpus=None):
        workers, threads = _workers_that_fit(_nodes(), run.workers, gpus)
    return WorkerLayout(workers, threads, on_ray=True, address=run.address, gpus=gpus)


def _workers_that_fit(nodes: Sequence[Mapping[str, float]], workers: int, gpus: int) -> tuple[int, int]:
    """Workers (0 chooses) and threads of each, for machines with these resources, of which each worker is on one."""
    room = {
        threads: sum(
            int(min(node.get("CPU", 0) // threads, node.get("GPU", 0) // gpus if gpus else math.inf)) for node in nodes
        )
        for threads in range(1, THREADS_PER_WORKER + 1)
    }
    wanted = workers or max(1, room[1 if gpus else THREADS_PER_WORKER])
    if wanted > room[1]:
        needs = "a CPU and a GPU" if gpus else "a CPU"
        raise UsageError(
            f"--workers {wanted}: each takes {needs}, and the cluster has room for {room[1]}"
            + ("; use fewer, or --device cpu" if gpus else "; use fewer, or add machines")
        )
    return wanted, max(threads for threads, places in room.items() if places >= wanted)


def run_units(
    job: Job[Unit, Result],
    units: Iterable[Unit],
    layout: WorkerLayout,
    tick: Tick,
    settled: Callable[[WorkerLayout], None] = lambda layout: None,
) -> Iterator[Result]:
    """Results in the order they come. `tick` hears of work as it is done: per batch in process, per unit on Ray.
    `settled` is told what a layout that leaves things to the cluster comes to there.

    What a unit raises is raised here, and what the job says when a worker has died once too often. Closing the iterator
    stops the workers.
    """
    if not layout.on_ray:
        work = job.start(layout.threads)
        for unit in units:
            yield work(unit, tick)
        return
    with connected(layout.address, cpus=layout.workers * max(1, layout.threads)):
        layout = _settle(layout)
        settled(layout)
        actors = _ActorPool(job, iter(units), layout)
        try:
            for result in actors.results():
                tick(result.done)
                yield result
        finally:
            actors.close()


class _ActorPool:
    """Gives units to workers on Ray as they get ready. A worker that the cluster has no room for yet holds no unit."""

    def __init__(self, job: Any, units: Iterator[Any], layout: WorkerLayout) -> None:
        import ray

        self._layout, self._units, self._job = layout, units, job
        self._stored_job = ray.put(job)
        self._again: deque[tuple[Any, int]] = deque()
        self._busy: dict[Any, tuple[Any, tuple[Any, int] | None]] = {}
        """What is waited for -> worker, and the unit and attempt it is at; None while it starts."""
        self._failed_starts = 0

    def results(self) -> Iterator[Any]:
        import ray

        for _ in range(self._layout.workers):
            self._start_worker()
        upcoming = self._take()
        while upcoming or any(task for _, task in self._busy.values()):
            finished, _ = ray.wait(list(self._busy), num_returns=1, timeout=WAIT_NOTICE_S)
            if not finished:
                self._say_why_nothing_happens()
            for reference in finished:
                worker, task = self._busy.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    _end(worker)
                    raise _cause(error) from error
                except ray.exceptions.RayError as error:
                    self._replace(worker, task, error)
                    upcoming = upcoming or self._take()
                    continue
                if upcoming:
                    self._busy[worker.work.remote(upcoming[0])] = (worker, upcoming)
                    upcoming = self._take()
                else:
                    _end(worker)
                if task:
                    yield result

    def close(self) -> None:
        for worker, _ in self._busy.values():
            _end(worker)

    def _take(self) -> tuple[Any, int] | None:
        """The next unit and the number of the attempt at it."""
        if self._again:
            return self._again.popleft()
        return next(((unit, 1) for unit in self._units), None)

    def _start_worker(self) -> None:
        import ray

        needs = {
            "num_cpus": self._layout.threads,
            "num_gpus": self._layout.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        worker: Any = ray.remote(_Worker).options(**needs).remote([self._stored_job], self._layout.threads)
        self._busy[worker.ready.remote()] = (worker, None)

    def _replace(self, worker: Any, task: tuple[Any, int] | None, error: Exception) -> None:
        """A new worker for one that died, and its unit again. Raises WorkerError after the last attempt."""
        _end(worker)
        reason = _reason(error)
        if task is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise WorkerError(f"workers do not start: {reason}; is the same version on every machine?") from error
        else:
            unit, attempt = task
            try:
                again = self._job.after_death(unit, attempt, reason)
            except WorkerError as given_up:
                raise given_up from error
            _log.warning("shard %d: the worker crashed (%s); attempt %d", unit.index, reason, attempt + 1)
            self._again.append((again, attempt + 1))
        self._start_worker()

    def _say_why_nothing_happens(self) -> None:
        import ray

        if not any(task for _, task in self._busy.values()):
            free = {name: count for name, count in ray.available_resources().items() if name in ("CPU", "GPU")}
            wanted = f"{self._layout.threads} CPUs" + (f" and {self._layout.gpus} GPU" if self._layout.gpus else "")
            _log.warning("waiting for the cluster: a worker needs %s on one machine, free are %s", wanted, free)


def _end(worker: Any) -> None:
    """Ray does so when nobody refers to a worker any more, but now and then forgets one, which then keeps its CPUs."""
    import ray

    ray.kill(worker, no_restart=True)


class _Worker:
    """Ray actor. Fetches its job with its first unit, so that what goes wrong in loading arrives as what it is."""

    def __init__(self, boxed_job: list[Any], threads: int) -> None:
        self._boxed_job, self._threads = boxed_job, threads
        self._do: Callable[[Any, Tick], Any] | None = None

    def ready(self) -> None:
        pass

    def work(self, unit: Any) -> Any:
        if self._do is None:
            import ray

            self._do = ray.get(self._boxed_job[0]).start(self._threads)
        return self._do(unit, _no_tick)


def _no_tick(done: Done) -> None:
    pass


def _reason(error: Exception) -> str:
    """The line of Ray's message that tells: the last of a traceback, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback" in str(error) else lines[0]


def _cause(error: Any) -> BaseException:
    """What the unit raised, as it would have been raised in process."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else WorkerError(str(error))


def _settle(layout: WorkerLayout) -> WorkerLayout:
    """The layout with what was left open settled by the resources of the cluster that is connected."""
    if layout.address is None:
        return layout
    if layout.gpus:
        gpus = int(_cluster_total("GPU"))
        if not gpus:
            raise UsageError("the cluster has no GPU; use --device cpu")
        return WorkerLayout(layout.workers or gpus, _cpus_per_gpu(), True, layout.address, layout.gpus)
    return WorkerLayout(layout.workers or max(1, int(_cluster_total("CPU"))), 1, True, layout.address)


def _cpus_per_gpu() -> int:
    """CPUs that each GPU worker can have on any node with GPUs."""
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in _nodes() if node.get("GPU")]
    return max(1, min([THREADS_PER_WORKER, *shares]))


def _nodes() -> list[Mapping[str, float]]:
    """Resources of each machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _cluster_total(resource: str) -> float:
    import ray

    return float(ray.cluster_resources().get(resource, 0))


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def connected(address: str | None, cpus: int | None) -> Iterator[None]:
    """A connection to Ray: the one this process has, the named cluster, or one started here and stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is not None:
        _refuse_closed_port(address)
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        quiet.update(num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    try:
        ray.init(address=address or "local", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if "AF_UNIX path length" in str(error):
            raise UsageError(
                f"Ray cannot start: its sockets, in {_ray_directory()}, have longer names than the system allows; "
                f"set RAY_TMPDIR to a short path, such as RAY_TMPDIR=/tmp"
            ) from error
        if address is None:
            raise
        raise UsageError(f"cannot join the Ray cluster at {address!r}: {_reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray_directory() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _refuse_closed_port(address: str) -> None:
    """Raises UsageError, which Ray does half a minute later."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot join the Ray cluster at {address!r}: {getattr(error, 'strerror', None) or error}; is its head "
            f"running, and is this its address (by default port 6379)?"
        ) from error
