"""`make demo`: archive faces, check the archive, restore it, and show originals and restored faces on one sheet.

    demo/
        faces/          400 drawn faces, unless others are named
        out.parquet     the archive
        restored/       what came back
        faces.png       some of the originals, and beside each what came back
        made.json       which files a demo has made: sizes and times

A file is removed only if it is as a demo made it. Whatever else lies in demo/ stays, and is named where it is in the
way.

    python benchmarks/demo.py [FACES] [-- FLAGS OF ARCHIVE ...]
    python benchmarks/demo.py --remove
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

DEMO = Path("demo")
DRAWN, ARCHIVE, RESTORED, SHEET = DEMO / "faces", DEMO / "out.parquet", DEMO / "restored", DEMO / "faces.png"
RECORD = DEMO / "made.json"
COUNT = 400
SHOWN = 16


class Refused(Exception):
    """What is wrong, and what to do."""


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--remove"]:
        for left in remove():
            print(f"{left} stays: it is not as make demo made it")
        return 0
    split = arguments.index("--") if "--" in arguments else len(arguments)
    faces, flags = arguments[:split], arguments[split + 1 :]
    try:
        return demo(Path(faces[0]) if faces else None, flags)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def demo(faces: Path | None, flags: Sequence[str]) -> int:
    """Exit code."""
    if faces is not None:
        _refuse_unsuitable(faces)
    if left := remove():
        raise Refused(
            f"{left[0]} is in the way, and not as make demo made it; move it out of {DEMO}"
            + (f" (and {len(left) - 1} more)" if len(left) > 1 else "")
        )
    DEMO.mkdir(exist_ok=True)
    source = faces or DRAWN
    if faces is None:
        from synthetic_faces import draw_faces

        with _made(DRAWN):
            draw_faces(DRAWN, COUNT)
        print(f"drew {COUNT} faces in {DRAWN}")
    beside = ["--against", str(source)] if source.is_dir() else []
    steps = (
        (ARCHIVE, ["archive", str(source), str(ARCHIVE), *flags]),
        (None, ["verify", str(ARCHIVE), "--against", str(source)]),
        (RESTORED, ["restore", str(ARCHIVE), str(RESTORED), "--reference", str(source)]),
        (SHEET, ["show", str(ARCHIVE), "--limit", str(SHOWN), *beside, "-o", str(SHEET)]),
    )
    for output, command in steps:
        print(f"\n$ zippy-batch {shlex.join(command)}", flush=True)
        with _made(output):
            code = subprocess.run([sys.executable, "-m", "zippy_batch", *command], check=False).returncode
        if code:
            return code
    print(f"\narchive: {ARCHIVE}   restored: {RESTORED}   {'before and after' if beside else 'faces'}: {SHEET}")
    return 0


def _refuse_unsuitable(faces: Path) -> None:
    """Raises Refused."""
    real, place = faces.resolve(), DEMO.resolve()
    if real == place or place in real.parents:
        raise Refused(f"FACES={faces} lies in {DEMO}, where make demo writes; move it to another place")
    if real in place.parents:
        raise Refused(f"FACES={faces} has {DEMO} in it, where make demo writes; name a directory beside it")
    if not faces.exists():
        raise Refused(f"there is no FACES={faces}")


def remove() -> list[Path]:
    """Take away what earlier demos made, and name what is in its place and is not theirs."""
    with suppress(FileNotFoundError, ValueError):
        for name, state in json.loads(RECORD.read_text()).items():
            path = DEMO / name
            with suppress(FileNotFoundError, NotADirectoryError):
                if _state(path) == state:
                    path.unlink()
    left = [path for top in (DRAWN, ARCHIVE, RESTORED, SHEET) for path in _files(top)]
    if not left:
        RECORD.unlink(missing_ok=True)
    for directory in (DRAWN, RESTORED, DEMO):
        _remove_empty(directory)
    return left


@contextmanager
def _made(output: Path | None) -> Iterator[None]:
    """Whatever is in `output` afterwards is recorded as made here: nothing was there before."""
    try:
        yield
    finally:
        if output is not None:
            before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
            made = {str(path.relative_to(DEMO)): _state(path) for path in _files(output)}
            RECORD.write_text(json.dumps(before | made))


def _files(top: Path) -> list[Path]:
    if top.is_symlink() or not top.is_dir():
        return [top] if os.path.lexists(top) else []
    return sorted(path for path in top.rglob("*") if path.is_symlink() or not path.is_dir())


def _state(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _remove_empty(top: Path) -> None:
    if top.is_symlink() or not top.is_dir():
        return
    for directory in sorted((path for path in top.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        with suppress(OSError):
            directory.rmdir()
    with suppress(OSError):
        top.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
