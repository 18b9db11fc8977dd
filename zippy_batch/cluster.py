"""Run units of work in this process or on Ray, and hand their results back as they come.

The only importer of Ray. A job says what a worker loads (`start`); a unit says what to do with it. Units are pulled
one at a time and at most one waits at each worker, so a driver with millions of files ahead of it holds a few units.
A worker that dies is replaced and its unit is done again elsewhere, which is safe because units commit by renaming.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from zippy_batch.config import RunOptions
from zippy_batch.errors import UsageError, WorkerError
from zippy_batch.report import Done, Tick

ATTEMPTS = 3
"""Times that a unit is tried on workers that die, before the run gives up."""
RAY_PAYS_IMAGES = 30_000
"""Below it, starting Ray and loading a model in each worker takes longer than it saves."""
RAY_PAYS_BYTES = 1 << 30
THREADS_PER_WORKER = 4
"""More gain little: half of a worker's time is Python code, one thread at a time."""
OBJECT_STORE_BYTES = 256 << 20
"""Of an embedded Ray: it carries lists of files and small reports."""

_log = logging.getLogger(__name__)


class HasDone(Protocol):
    @property
    def done(self) -> Done: ...


Unit = TypeVar("Unit")
Result = TypeVar("Result", bound=HasDone)
UnitIn = TypeVar("UnitIn", contravariant=True)
ResultOut = TypeVar("ResultOut", bound=HasDone, covariant=True)


class Job(Protocol[UnitIn, ResultOut]):
    """What every worker of a run needs; pickles. `start` is called once in each worker."""

    def start(self, threads: int) -> Callable[[UnitIn, Tick], ResultOut]: ...


@dataclass(frozen=True)
class Crew:
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
        with _connected(address, cpus=None):
            there = _cluster_total("GPU") >= 1
    else:
        import torch

        there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UsageError("--device cuda: there is no usable GPU; choose --device cpu or auto")
    return "cuda" if there else "cpu"


def choose_crew(units: int, images: int, source_bytes: int, device: str, run: RunOptions) -> Crew:
    """Ray when a cluster is named or the job is worth starting it for; otherwise threads in this process."""
    cpus = usable_cpus()
    if run.address is not None:
        return Crew(run.workers, 0, on_ray=True, address=run.address, gpus=int(device == "cuda"))
    gpus = _gpus_here() if device == "cuda" else 0
    most = min(units, gpus if device == "cuda" else cpus)
    big = images >= RAY_PAYS_IMAGES or source_bytes >= RAY_PAYS_BYTES
    workers = min(run.workers, units) if run.workers else (most if big else 1)
    if workers <= 1:
        return Crew(1, min(cpus, THREADS_PER_WORKER), on_ray=False)
    threads = max(1, min(cpus // workers, THREADS_PER_WORKER))
    return Crew(workers, threads, on_ray=True, gpus=int(device == "cuda"))


def run_units(job: Job[Unit, Result], units: Iterable[Unit], crew: Crew, tick: Tick) -> Iterator[Result]:
    """Results in the order they come. `tick` hears of work as it is done: per batch in process, per unit on Ray.

    What a unit raises is raised here, and WorkerError when its worker died ATTEMPTS times. Closing the iterator stops
    the workers.
    """
    if not crew.on_ray:
        work = job.start(crew.threads)
        for unit in units:
            yield work(unit, tick)
        return
    with _connected(crew.address, cpus=crew.workers * max(1, crew.threads)):
        for result in _run_on_ray(job, iter(units), _fit(crew)):
            tick(result.done)
            yield result


def _run_on_ray(job: Any, units: Iterator[Any], crew: Crew) -> Iterator[Any]:
    import ray

    shared_job = ray.put(job)
    running: dict[Any, tuple[Any, Any, int]] = {}

    def hire() -> Any:
        options = {"num_cpus": crew.threads, "num_gpus": crew.gpus, "max_restarts": 0, "max_task_retries": 0}
        return ray.remote(_Worker).options(**options).remote([shared_job], crew.threads)

    def give(actor: Any, unit: Any, attempt: int = 1) -> None:
        running[actor.work.remote(unit)] = (actor, unit, attempt)

    try:
        for unit in islice(units, crew.workers):
            give(hire(), unit)
        while running:
            finished, _ = ray.wait(list(running), num_returns=1, timeout=None)
            for reference in finished:
                actor, unit, attempt = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from error
                except ray.exceptions.RayError as error:
                    give(_replacement(actor, unit, attempt, error, hire), unit, attempt + 1)
                    continue
                for following in islice(units, 1):
                    give(actor, following)
                yield result
    finally:
        for actor, _, _ in running.values():
            ray.kill(actor, no_restart=True)


class _Worker:
    """Ray actor. Fetches its job with its first unit, so that what goes wrong in loading arrives as what it is."""

    def __init__(self, boxed_job: list[Any], threads: int) -> None:
        self._boxed_job, self._threads = boxed_job, threads
        self._do: Callable[[Any, Tick], Any] | None = None

    def work(self, unit: Any) -> Any:
        if self._do is None:
            import ray

            self._do = ray.get(self._boxed_job[0]).start(self._threads)
        return self._do(unit, _no_tick)


def _no_tick(done: Done) -> None:
    pass


def _replacement(actor: Any, unit: Any, attempt: int, error: Exception, hire: Callable[[], Any]) -> Any:
    """A new worker for a unit whose worker died; raises WorkerError after the last attempt."""
    import ray

    ray.kill(actor, no_restart=True)
    reason = str(error).strip().splitlines()[0]
    if attempt >= ATTEMPTS:
        raise WorkerError(
            f"shard {unit.index}: its worker died {attempt} times ({reason}); what is committed stays, and the same "
            f"command goes on from there. If memory ran out, choose a smaller --batch-size or fewer --workers"
        ) from error
    _log.warning("shard %d: its worker died (%s); attempt %d of %d", unit.index, reason, attempt + 1, ATTEMPTS)
    return hire()


def _cause(error: Any) -> BaseException:
    """What the unit raised, as it would have been raised in process."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else WorkerError(str(error))


def _fit(crew: Crew) -> Crew:
    """The crew with what was left open settled by the resources of the cluster that is connected."""
    if crew.address is None:
        return crew
    if crew.gpus:
        gpus = int(_cluster_total("GPU"))
        if not gpus:
            raise UsageError("the cluster has no GPU; use --device cpu")
        return Crew(crew.workers or gpus, _cpus_per_gpu(), True, crew.address, crew.gpus)
    return Crew(crew.workers or max(1, int(_cluster_total("CPU"))), 1, True, crew.address)


def _cpus_per_gpu() -> int:
    """CPUs that each GPU worker can have on any node with GPUs."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes]
    return max(1, min([THREADS_PER_WORKER, *shares]))


def _cluster_total(resource: str) -> float:
    import ray

    return float(ray.cluster_resources().get(resource, 0))


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def _connected(address: str | None, cpus: int | None) -> Iterator[None]:
    """A connection to Ray: the one this process has, the named cluster, or one started here and stopped at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        quiet.update(num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    try:
        ray.init(address=address or "local", **quiet)
    except ConnectionError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()
