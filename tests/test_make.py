"""What `make` does, in a copy of what it needs of this repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import files_of

TOOLS = ("Makefile", "benchmarks/demo.py", "benchmarks/synthetic_faces.py", "pyproject.toml", "constraints.txt")
SHOWS_ITS_ARGUMENTS = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """With an environment that is installed, whose `zippy-batch` prints what it is called with."""
    clone = tmp_path / "clone"
    for name in TOOLS:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, clone / name)
    (clone / "env" / "bin").mkdir(parents=True)
    for name, script in (("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'), ("zippy-batch", SHOWS_ITS_ARGUMENTS)):
        (clone / "env" / "bin" / name).write_text(script)
        (clone / "env" / "bin" / name).chmod(0o755)
    (clone / "env" / ".installed").touch()
    return clone


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # `make test` hands its own flags down, and a make below it prints which directory it enters
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment = {**inherited, "PYTHONPATH": str(Path(__file__).parents[1])}
    settings = ("VENV=env", f"PYTHON={sys.executable}")
    return subprocess.run(
        ["make", *settings, *arguments], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def few_faces(drawn_faces: Path, directory: Path) -> Path:
    directory.mkdir(parents=True)
    for path in sorted(drawn_faces.iterdir())[:4]:
        shutil.copy(path, directory)
    return directory


@pytest.mark.parametrize("faces", ["demo/mine", "demo", "./demo/../demo/mine", "link", "."])
def test_faces_in_the_place_of_the_demo_or_around_it_are_refused_and_stay(
    faces: str, clone: Path, drawn_faces: Path
) -> None:
    few_faces(drawn_faces, clone / "demo" / "mine")
    (clone / "link").symlink_to("demo/mine")
    before = files_of(clone)
    done = make(clone, "demo", f"FACES={faces}")
    assert done.returncode != 0
    assert f"error: FACES={Path(faces)} " in done.stderr
    assert files_of(clone) == before


def test_a_demo_ends_with_a_picture_and_is_removed_without_anything_else(clone: Path, drawn_faces: Path) -> None:
    faces = few_faces(drawn_faces, clone / "my faces")
    (clone / "demo").mkdir()
    (clone / "demo" / "mine.jpg").write_bytes(b"mine")
    before = files_of(clone)
    done = make(clone, "demo", f"FACES={faces.name}", "ARGS=--workers 1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("demo/faces.png")
    assert (clone / "demo" / "faces.png").read_bytes().startswith(b"\x89PNG")
    (clone / "demo" / "restored" / "new.jpg").write_bytes(b"mine too")
    (clone / "demo" / "restored" / "face_00001.jpg").write_bytes(b"changed")
    done = make(clone, "clean")
    kept = {b"demo/restored/new.jpg": b"mine too", b"demo/restored/face_00001.jpg": b"changed"}
    left = {path: data for path, data in files_of(clone).items() if path != b"demo/made.json"}
    assert left == before | kept
    assert "demo/restored/new.jpg stays" in done.stdout
    again = make(clone, "demo", f"FACES={faces.name}")
    assert again.returncode != 0
    assert "is in the way, and not as make demo made it; move it out of demo" in again.stderr
    assert files_of(clone)[b"demo/restored/new.jpg"] == b"mine too"


def test_what_the_user_put_into_the_faces_of_a_demo_stays(clone: Path) -> None:
    (clone / "demo" / "faces").mkdir(parents=True)
    (clone / "demo" / "faces" / "face_00000.jpg").write_bytes(b"mine")
    done = make(clone, "demo")
    assert done.returncode != 0
    assert "demo/faces/face_00000.jpg is in the way" in done.stderr
    make(clone, "clean")
    assert (clone / "demo" / "faces" / "face_00000.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize(("sources", "given"), [("a b", ["a b"]), ("a c", ["a", "c"]), ("a", ["a"])])
def test_train_takes_one_source_with_a_space_in_its_name_or_several(
    sources: str, given: list[str], clone: Path
) -> None:
    for name in ("a", "c", "a b"):
        (clone / name).mkdir()
    done = make(clone, "train", f"SRC={sources}", "OUT=m.safetensors", "ARGS=--minutes 1")
    assert json.loads(done.stdout.splitlines()[0]) == ["train", *given, "-o", "m.safetensors", "--minutes", "1"]


@pytest.mark.parametrize(
    ("target", "extras"), [("demo", []), ("archive", []), ("test", ["test"]), ("lint", ["test", "dev"])]
)
def test_a_target_installs_what_it_needs_and_no_more(target: str, extras: list[str], clone: Path) -> None:
    shutil.rmtree(clone / "env")
    done = make(clone, "-n", target, "SRC=faces", "OUT=out.parquet")
    installed = [line.rsplit(" -e ", 1)[1] for line in done.stdout.splitlines() if "pip install" in line]
    assert installed == [".", *(f"'.[{extra}]'" for extra in extras)]
