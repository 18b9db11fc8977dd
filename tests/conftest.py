"""What tests share: real pictures where there are any, drawn faces everywhere; and how they run side by side.

`make test` runs them in several processes (pytest-xdist). Tests of a file stay together, because they share what its
fixtures make. Files that take longest come first.
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
LONGEST = (
    "test_nodes", "test_stores", "test_resume", "test_pipeline", "test_submit", "test_cluster", "test_faulty_store",
    "test_cli", "test_restore_folder", "test_failing_calls", "test_damaged_archives", "test_train",
    "test_train_workers",
)  # fmt: skip
"""Files, by the seconds that they take."""
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
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


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
