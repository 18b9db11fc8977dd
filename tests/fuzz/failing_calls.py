"""One system call of a run fails, whichever it is: `python failing_calls.py ROOT`, with the shim in LD_PRELOAD.

A program of its own, because it forks: each trial is a child whose run meets the failure. Prints how many calls there
were, or tells of the trials that failed.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pandas  # noqa: F401 - pyarrow imports it where it is installed: once, and not in every child
import pyarrow.parquet  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import CODECS, files_of, make_faces, pixels
from trials import run_trials

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ZippyError
from zippy_batch.run.encode_verified import compare
from zippy_batch.run.pipeline import archive, restore, verify

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EDQUOT, errno.EROFS)
DONE, REFUSED, WRONG = 0, 10, 11
IN_PROCESS = RunOptions(workers=1)
CALM = -1
"""A number that no call has."""

shim = ctypes.CDLL(None)
shim.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
shim.disarm.restype = ctypes.c_long
shim.failed_call.restype = ctypes.c_char_p


class Runs:
    """What is tried, and what it is to come to."""

    def __init__(self, root: Path) -> None:
        self.faces = make_faces(root / "faces")
        self.commands: dict[str, tuple[Callable[[Path], None], dict[bytes, bytes]]] = {}
        for name in ("out.parquet", "out"):
            source = root / f"whole-{name}"
            self.archive(source)
            self.commands[f"archive {name}"] = (self.archive, content(source))
            back = root / f"back-of-{Path(name).stem}-{len(self.commands)}"
            restore(source, back, RestoreOptions(device="cpu"), IN_PROCESS, codecs=CODECS)
            self.commands[f"restore {name}"] = (self.restore_of(source), content(back))
            self.commands[f"verify {name}"] = (self.verify_of(source), {})

    def archive(self, output: Path) -> None:
        options = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
        archive(self.faces, output, options, IN_PROCESS, codecs=CODECS)

    def restore_of(self, source: Path) -> Callable[[Path], None]:
        def run(output: Path) -> None:
            restore(source, output, RestoreOptions(device="cpu"), IN_PROCESS, codecs=CODECS)

        return run

    def verify_of(self, source: Path) -> Callable[[Path], None]:
        def run(output: Path) -> None:
            report = verify(source, self.faces, run=IN_PROCESS, codecs=CODECS)
            if report.exit_code:
                raise ZippyError("; ".join(report.lines()))

        return run


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()} if path.exists() else {}


def in_child(work: Callable[[], None], root: Path, call: int, error: int) -> tuple[int, int, str]:
    """How a run with this failure ended, how many calls it made, and what it said."""
    reading, writing = os.pipe()
    gc.freeze()  # a child that looks through what is there copies all of it
    child = os.fork()
    if child == 0:
        gc.disable()
        code, said = DONE, ""
        shim.arm(os.fsencode(root), call, error)
        try:
            work()
        except (ZippyError, OSError) as raised:
            code, said = (REFUSED, str(raised)) if str(raised).strip() else (WRONG, "an error without words")
        except BaseException:
            code, said = WRONG, traceback.format_exc()
        calls = shim.disarm()
        os.write(writing, f"{calls} {shim.failed_call().decode()} {said}"[:60000].encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        calls, _, said = pipe.read().decode().partition(" ")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, int(calls or 0), said


def output_of(command: str) -> str:
    verb, _, archived = command.partition(" ")
    return archived if verb == "archive" else "back"


def calls_of(work: Callable[[Path], None], output: Path) -> int:
    output.parent.mkdir()
    code, calls, said = in_child(lambda: work(output), output.parents[1], CALM, 0)
    assert code == DONE, said
    shutil.rmtree(output.parent)
    return calls


def main() -> None:
    root = Path(sys.argv[1])
    compare(pixels(0), pixels(1))  # compiled once, for all children
    runs = Runs(root)
    before = files_of(runs.faces)
    counts = {name: calls_of(work, root / "calm" / output_of(name)) for name, (work, _) in runs.commands.items()}

    def trial(draw: random.Random) -> None:
        name = draw.choice(list(runs.commands))
        work, expected = runs.commands[name]
        call, error = draw.randrange(counts[name]), draw.choice(ERRORS)
        folder = root / f"{draw.random()}"
        folder.mkdir()
        output = folder / output_of(name)
        code, _, said = in_child(lambda: work(output), root, call, error)
        what = f"{name}, call {call} ({os.strerror(error)}), {said}"
        assert code in (DONE, REFUSED), what
        if code == DONE and name[:6] != "verify":
            assert content(output) == expected, f"{what}: it said that all was done"
        if code == REFUSED:
            again, _, said = in_child(lambda: work(output), root, CALM, 0)
            if not (again == REFUSED and content(output) == expected):
                assert again == DONE, f"{what}; the next run: {said}"
        if name[:6] != "verify":
            assert content(output) == expected, what
            assert [path.name for path in folder.iterdir()] == [output.name], f"{what}: something is left"
        assert files_of(runs.faces) == before, f"{what}: the source has changed"
        shutil.rmtree(folder)

    run_trials(trial, 120)
    print(sum(counts.values()))


if __name__ == "__main__":
    main()
