"""Kills a child process before one of the things that it does to the file system."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable

EFFECTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
KILLED, FAILED = 9, 3


def in_child(work: Callable[[], None]) -> int:
    # what is there already is not looked through in the child, which would copy every page of it
    gc.freeze()
    child = os.fork()
    if child == 0:
        gc.disable()
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_before(point: int, work: Callable[[], None]) -> Callable[[], None]:
    """As SIGKILL would: nothing is flushed, nothing is tidied up."""
    left = point

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EFFECTS or (event == "open" and _makes_a_file(arguments[1], arguments[2])):
            left -= 1
            if left < 0:
                os._exit(KILLED)

    def watched() -> None:
        sys.addaudithook(watch)
        work()

    return watched


def _makes_a_file(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return "w" in mode or "x" in mode
    return isinstance(flags, int) and bool(flags & os.O_CREAT)
