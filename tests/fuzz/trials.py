"""Seeded trials: a few hundred in the tests, thousands by `make fuzz TRIALS=5000 SEED=7`.

A trial that fails is named by its number; TRIALS=1 FIRST=number SEED=seed runs it alone.
"""

from __future__ import annotations

import os
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zippy_batch.errors import ZippyError

SEED = int(os.environ.get("SEED", "0"))
SHOWN = 5


def run_trials(trial: Callable[[random.Random], None], usual: int) -> None:
    """Each with a generator of its own; raises AssertionError that tells of the first that fail."""
    count, first = int(os.environ.get("TRIALS", usual)), int(os.environ.get("FIRST", "0"))
    failed: list[str] = []
    for number in range(first, first + count):
        try:
            trial(random.Random(f"{SEED} {number}"))
        except Exception:
            failed.append(f"trial {number} of seed {SEED}:\n{traceback.format_exc()}")
    said = "\n".join(failed[:SHOWN])
    assert not failed, f"{len(failed)} of {count} trials failed\n{said}"


def check_refusal(error: ZippyError) -> None:
    """A refusal says something, and is one of the ends that a command can have."""
    assert str(error).strip()
    assert error.exit_code in (1, 2)


@contextmanager
def bounded(cpu_s: float) -> Iterator[None]:
    """AssertionError for what takes more seconds of processor time, however busy the machine is."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"it takes more than {cpu_s} s of processor time")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
