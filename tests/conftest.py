"""What tests share: real pictures where there are any, drawn faces everywhere; and how they run side by side.

`make test` runs them in several processes (pytest-xdist). Tests of a file stay together, because they share what its
fixtures make; those that need Ray share one, whatever their file. Groups that take longest come first.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
ON_RAY = "on_ray"
"""Part of the names of tests that share one Ray."""
ALONE = (
    "test_nodes.py::test_a_machine", "test_nodes.py::test_a_file", "test_nodes.py::test_a_run_whose_head",
    "test_resume.py::test_a_run_killed",
)  # fmt: skip
"""Tests that take long, and that share nothing with the others of their file."""
LONGEST = (
    "test_nodes.py$", ON_RAY, "test_failing_calls", "test_submit", "test_nodes.py::", "test_stores",
    "test_faulty_store", "test_train.py", "test_codec", "test_pipeline", "test_damaged_archives", "test_resume",
    "test_living", "test_make", "test_isolation", "test_torch", "test_cli",
)  # fmt: skip
"""Parts of the names of groups, which end in $, by the seconds that they take: not all of those with a Ray at once."""
MOST_PROCESSES = 8
"""The longest file takes as long as all others in so many."""

# before anything imports Ray: tests never report usage, and a run of them stays on the cores it was given
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if IN_PARALLEL:
    # before anything imports torch: each process has threads enough in the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores, since tests on clusters mostly wait."""
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)) + 1)


def pytest_configure(config: pytest.Config) -> None:
    # a shell makes what it starts in the background ignore interruptions, and every process that a test starts would
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if IN_PARALLEL:
        _compile_kernels_once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_PARALLEL:
        items.sort(key=lambda item: _rank(_group_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid)

    return Groups(config, log)


def _group_of(nodeid: str) -> str:
    """What tests of this name are run together with, in one process and one after another."""
    if any(one in nodeid for one in ALONE):
        return nodeid
    return ON_RAY if ON_RAY in nodeid or "test_cluster" in nodeid else nodeid.split("::")[0]


def _rank(group: str) -> int:
    return next((i for i, one in enumerate(LONGEST) if one in f"{group}$"), len(LONGEST))


def _compile_kernels_once() -> None:
    """A process that needs a kernel which another one compiles waits for it, and finds it in numba's cache."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.dispatcher import Dispatcher

    compile_here, is_compiling = Dispatcher.compile, False

    def compile_alone(self: Any, signature: Any) -> Any:
        nonlocal is_compiling
        with global_compiler_lock:
            if is_compiling:
                # a kernel that the first one calls
                return compile_here(self, signature)
            with open(self.py_func.__code__.co_filename) as source:
                fcntl.flock(source, fcntl.LOCK_EX)
                is_compiling = True
                try:
                    return compile_here(self, signature)
                finally:
                    is_compiling = False

    pytest.MonkeyPatch().setattr(Dispatcher, "compile", compile_alone)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real faces and odd files beside the repository; where they are missing, the tests that need them are skipped."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no real pictures here (../shared is missing)")
    return path


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn faces of 42x42, as JPEG files. Read only."""
    from synthetic_faces import draw_faces

    directory = tmp_path_factory.mktemp("drawn") / "faces"
    draw_faces(directory, 40)
    return directory


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with two CPUs. It takes seconds to start, so whoever comes first does it for all."""
    import ray
    from ray_start import start_ray, tried_again

    if not ray.is_initialized():
        tried_again(start_ray, ray.shutdown)
    yield
    ray.shutdown()
