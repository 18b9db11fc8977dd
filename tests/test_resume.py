from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CODECS, files_of, make_faces
from tiny import tiny_model

from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import UsageError
from zippy_batch.run.pipeline import archive
from zippy_batch.run.report import ArchiveReport, Progress
from zippy_batch.run.staging_local import open_local_staging, staging_path

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
"""The 12 files of `make_faces` are 3 shards of 4."""


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture(params=["out.parquet", "out"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def make(source: Path, output: Path, interrupt_after: int | None = None) -> ArchiveReport:
    """Interrupted once this many shards are committed."""

    def watch(progress: Progress) -> None:
        if interrupt_after is not None and progress.shards >= interrupt_after and not progress.is_check:
            raise KeyboardInterrupt

    return archive(source, output, OPTIONS, RunOptions(workers=1), watch, CODECS)


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


def test_rerun_does_only_what_is_missing_and_makes_the_same_bytes(faces: Path, output: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed" / output.name
    undisturbed.parent.mkdir()
    make(faces, undisturbed)
    with pytest.raises(KeyboardInterrupt):
        make(faces, output, interrupt_after=1)
    assert not output.exists()
    with pytest.raises(KeyboardInterrupt):
        make(faces, output, interrupt_after=1)
    report = make(faces, output)
    assert report.run is not None
    assert (report.run.images, report.run.shards_resumed) == (4, 2)
    assert [line.seconds is None for line in report.shards] == [True, True, False]
    assert content(output) == content(undisturbed)
    assert not staging_path(output).exists()


def test_half_written_parts_are_swept_and_not_taken_up(faces: Path, output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(faces, output, interrupt_after=1)
    (parts,) = [path for path in staging_path(output).iterdir() if path.is_dir()]
    (parts / "part-00001.parquet.new-0123").write_bytes(b"half")
    make(faces, output)
    assert not any(b"new-" in path for path in content(output))


def test_a_run_that_goes_on_tells_how_far_it_has_checked_what_was_done(faces: Path, output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(faces, output, interrupt_after=2)
    told: list[Progress] = []
    archive(faces, output, OPTIONS, RunOptions(workers=1), told.append, CODECS)
    checks = [(p.images, p.images_total, p.shards, p.shards_total) for p in told if p.is_check]
    assert checks == [(4, 8, 1, 2), (8, 8, 2, 2)]
    assert not told[-1].is_check


def test_two_runs_do_not_mix(faces: Path, output: Path) -> None:
    with (
        open_local_staging(output, "f" * 64, {}, overwrite=False),
        pytest.raises(UsageError, match="another run is writing"),
    ):
        make(faces, output)
    make(faces, output)


def test_a_place_that_takes_no_directory_is_refused_and_not_tried_for_ever(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc does."""

    def refuse(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UsageError, match="cannot write beside the output"),
        open_local_staging(output, "f" * 64, {}, False),
    ):
        pass


def test_a_run_killed_at_any_point_is_finished_by_the_next(faces: Path) -> None:
    script = Path(__file__).with_name("crash_points.py")
    done = subprocess.run(
        [sys.executable, str(script), str(faces)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) >= 12


SLOW_RUN = """
import sys, time
from pathlib import Path
from fakes import CODECS
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.pipeline import archive
options = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
archive(Path(sys.argv[1]), Path(sys.argv[2]), options, RunOptions(workers=1), lambda _: time.sleep(0.2), CODECS)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_or_interrupted_keeps_its_shards(kill: int, faces: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SLOW_RUN, str(faces), str(output)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(staging_path(output).glob("*/part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kill)
    assert process.wait(30) != 0
    assert not output.exists()
    report = archive(faces, output, OPTIONS, RunOptions(workers=1), codecs=CODECS)
    assert report.run is not None
    assert report.run.shards_resumed >= 1
    assert report.total.images == 12


def test_plan_does_not_depend_on_the_number_of_workers(faces: Path, output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(faces, output, interrupt_after=1)
    report = archive(faces, output, replace(OPTIONS, strict=False), RunOptions(), codecs=CODECS)
    assert report.run is not None
    assert report.run.shards_resumed == 1


def test_a_driver_that_is_killed_on_ray_is_finished_by_the_next_run(drawn_faces: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny.safetensors"
    model.write_bytes(tiny_model().data)
    options = ArchiveOptions(model=str(model), shard_size=2, device="cpu")
    whole, output = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    archive(drawn_faces, whole, options, RunOptions(workers=1))
    flags = ["--model", str(model), "--shard-size", "2", "--device", "cpu", "--workers", "2"]
    command = [sys.executable, "-m", "zippy_batch", "archive", str(drawn_faces), str(output), *flags]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(staging_path(output).glob("*/part-*.parquet")):
            assert driver.poll() is None, "the run ended before it had committed a shard"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert not output.exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    committed = len(list(staging_path(output).glob("*/part-*.parquet")))
    report = archive(drawn_faces, output, options, RunOptions(workers=1))
    assert report.run is not None
    assert report.run.shards_resumed >= committed > 0
    assert output.read_bytes() == whole.read_bytes()
