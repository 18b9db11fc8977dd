"""What goes wrong around a run: each time the message names the file, nothing half done is left in its place, and the
same command goes on when the fault is gone."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import CODECS, files_of, make_faces
from tiny import tiny_model

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ArchiveError, SourceError, StagingMismatch, UsageError, WriteError, ZippyError
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.run.report import ArchiveReport, Progress
from zippy_batch.run.staging_local import LocalStaging, staging_path
from zippy_batch.sources import directory as listing
from zippy_batch.sources.directory import list_files, read_file

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
RESTORE = RestoreOptions(device="cpu")
NOBODY = 65534


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """13 files, 200 kB of one of them incompressible: 3 shards of 4 and 5."""
    directory = make_faces(tmp_path / "faces")
    (directory / "noise").write_bytes(os.urandom(200_000))
    return directory


@pytest.fixture
def undisturbed(faces: Path, tmp_path: Path) -> Path:
    """What a run makes that nothing happens to: `out.parquet` and `out`."""
    directory = tmp_path / "undisturbed"
    directory.mkdir()
    for name in ("out.parquet", "out"):
        make(faces, directory / name)
    return directory


def make(source: Path, output: Path, watch: Callable[[Progress], None] | None = None) -> ArchiveReport:
    return archive(source, output, OPTIONS, RunOptions(workers=1), watch, CODECS)


def after_a_shard(act: Callable[[], object]) -> Callable[[Progress], None]:
    """A watcher that acts once the first shard is committed."""
    left = [act]

    def watch(progress: Progress) -> None:
        if progress.shards and left and not progress.is_check:
            left.pop()()

    return watch


def interrupt() -> None:
    raise KeyboardInterrupt


def first_part(output: Path) -> Path:
    return next(staging_path(output).glob("*/part-00000.parquet"))


def interrupted(source: Path, output: Path) -> Path:
    """The one part that a run has committed when it is interrupted."""
    with pytest.raises(KeyboardInterrupt):
        make(source, output, after_a_shard(interrupt))
    return first_part(output)


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


def half_written(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*.new-*")]


class Disk:
    """A small file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path))

    def remount(self, options: str) -> None:
        mount("-o", f"remount,{options}", str(self.path))


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid():
        pytest.skip("only root can mount a file system of its own")
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", str(made.path)], check=True)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_a_full_disk_is_named_and_with_room_the_run_goes_on(
    name: str, faces: Path, undisturbed: Path, disk: Disk
) -> None:
    output = disk.path / name
    disk.remount("size=100k")
    with pytest.raises(
        WriteError, match=r"part-0000\d\.parquet.* cannot be written: No space left on device; make room"
    ):
        make(faces, output)
    assert not output.exists()
    assert not half_written(disk.path)
    disk.remount("size=16m")
    make(faces, output)
    assert content(output) == content(undisturbed / name)
    assert [path.name for path in disk.path.iterdir()] == [name]


def test_a_disk_with_room_for_the_parts_alone_is_named_too(faces: Path, undisturbed: Path, disk: Disk) -> None:
    """A single file takes its size twice while the parts are joined."""
    output = disk.path / "out.parquet"
    disk.remount("size=320k")
    with pytest.raises(WriteError, match="finished cannot be written: No space left on device"):
        make(faces, output)
    disk.remount("size=16m")
    report = make(faces, output)
    assert report.run is not None
    assert report.run.shards_resumed == 3
    assert content(output) == content(undisturbed / "out.parquet")


def test_no_room_for_a_long_list_of_files_is_named(
    faces: Path, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.remount("size=32k")
    (disk.path / "filler").write_bytes(bytes(32 << 10))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    monkeypatch.setattr(listing, "_IN_MEMORY_BYTES", 1)
    output = tmp_path / "out.parquet"
    with pytest.raises(WriteError, match=f"list of files, in {disk.path}, cannot be written: No space .*make room"):
        make(faces, output)
    assert not output.exists()
    assert not staging_path(output).exists()


def test_a_full_disk_is_named_by_restore_too(faces: Path, undisturbed: Path, disk: Disk) -> None:
    disk.remount("size=100k")
    back = disk.path / "back"
    with pytest.raises(WriteError, match=f"{back}/noise cannot be written: No space left on device"):
        restore(undisturbed / "out", back, RESTORE, RunOptions(workers=1), codecs=CODECS)
    assert not (back / "noise").exists()
    disk.remount("size=16m")
    restore(undisturbed / "out", back, RESTORE, RunOptions(workers=1), codecs=CODECS)
    assert (back / "noise").read_bytes() == (faces / "noise").read_bytes()
    assert len(files_of(back)) == 13


def test_a_read_only_place_is_refused_before_anything_is_done(faces: Path, disk: Disk) -> None:
    disk.remount("ro")
    with pytest.raises(UsageError, match=r"cannot write beside the output: .*: Read-only file system"):
        make(faces, disk.path / "out.parquet")
    disk.remount("rw")
    assert not list(disk.path.iterdir())


def in_child(act: Callable[[], object]) -> str:
    """What `act` raises in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            act()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_limit_on_the_size_of_files_is_named(faces: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        make(faces, output)

    said = in_child(limited)
    assert said.startswith("WriteError: ")
    assert "cannot be written: File too large; raise the limit on the size of files" in said
    make(faces, output)
    assert content(output) == content(undisturbed / output.name)


def test_a_file_that_may_not_be_read_is_named_before_anything_is_done(
    faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    output = tmp_path / "open" / "out.parquet"
    (faces / "3.jpg").chmod(0)
    for directory in (*tmp_path.parents[:3], tmp_path):
        directory.chmod(directory.stat().st_mode | 0o011)

    def as_nobody() -> None:
        if not os.geteuid():
            os.setuid(NOBODY)
        make(faces, output)

    said = in_child(as_nobody)
    assert said.startswith("UsageError: ")
    assert "3.jpg: may not be read (permission)" in said
    assert not list(output.parent.iterdir())
    (faces / "3.jpg").chmod(0o644)
    make(faces, output)
    assert content(output) == content(undisturbed / output.name)


@pytest.mark.parametrize("case", ["gone", "changed", "a pipe"])
def test_a_file_that_is_lost_during_the_run_ends_it_and_brought_back_lets_it_go_on(
    case: str, faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    lost, kept, output = faces / "sub/1.png", tmp_path / "kept", tmp_path / "out.parquet"

    def lose() -> None:
        lost.rename(kept)
        if case == "changed":
            lost.write_bytes(b"another")
        elif case == "a pipe":
            os.mkfifo(lost)

    with pytest.raises(SourceError, match=r"sub/1\.png: (cannot be read: No such file|changed during the run)"):
        make(faces, output, after_a_shard(lose))
    assert not output.exists()
    lost.unlink(missing_ok=True)
    with pytest.raises(StagingMismatch, match="Run it again as it was to finish it"):
        make(faces, output)
    kept.rename(lost)
    report = make(faces, output)
    assert report.run is not None
    assert report.run.shards_resumed >= 1
    assert content(output) == content(undisturbed / output.name)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
@pytest.mark.parametrize("case", ["in the nanoseconds of its time", "with all of its times set back", "replaced"])
def test_a_file_that_changed_between_runs_has_its_shard_done_again(
    case: str, name: str, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its size and the second of its modification stay as they were."""
    output, changed = tmp_path / name, faces / "0.jpg"
    interrupted(faces, output)
    status = changed.stat()
    data = changed.read_bytes()
    assert data.count(b"JFIF") == 1
    target = changed if case != "replaced" else faces.with_name("new")
    target.write_bytes(data.replace(b"JFIF", b"jfif"))
    shift = 1000 if "nanoseconds" in case else 0
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns + shift))
    target.replace(changed)
    report = make(faces, output)
    assert "files of 1 finished shard have changed since an earlier run read them; it is done again" in caplog.text
    assert report.run is not None
    assert report.run.shards_resumed == 0
    make(faces, tmp_path / f"new-{name}")
    assert content(output) == content(tmp_path / f"new-{name}")


def test_a_file_that_changed_before_the_archive_was_in_its_place_has_its_shard_done_again(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(LocalStaging, "_rename_into_place", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            make(faces, output)
    os.utime(faces / "0.jpg", ns=(0, (faces / "0.jpg").stat().st_mtime_ns))
    report = make(faces, output)
    assert report.run is not None
    assert report.run.shards_resumed == 2


def test_a_file_that_is_written_to_while_it_is_read_is_named(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program that has it open already, so that its size stays."""
    target = faces / "noise"
    (found,) = (file for file in list_files(faces).files if file.path == b"noise")
    real, calls = os.fstat, []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            os.utime(target, ns=(0, target.stat().st_mtime_ns + 1))
        return real(descriptor)

    monkeypatch.setattr("zippy_batch.sources.directory.os.fstat", fstat)
    with pytest.raises(SourceError, match="noise: changed while it was read"):
        read_file(faces, found)


def damage(part: Path, case: str) -> None:
    data = part.read_bytes()
    if case == "changed":
        payload = pq.read_table(part)["payload"][0].as_py()
        assert data.count(payload) == 1
        data = data.replace(payload, payload[:-1] + bytes([payload[-1] ^ 1]))
    part.write_bytes(data[: {"cut": 1000, "empty": 0, "changed": None}[case]])


@pytest.mark.parametrize("name", ["out.parquet", "out"])
@pytest.mark.parametrize("case", ["cut", "empty", "changed"])
def test_a_part_that_is_damaged_between_runs_is_named_and_done_anew(
    case: str, name: str, faces: Path, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / name
    part = interrupted(faces, output)
    damage(part, case)
    report = make(faces, output)
    assert f"{part} is no longer what was written there" in caplog.text
    assert report.run is not None
    assert report.run.shards_resumed == 0
    assert content(output) == content(undisturbed / name)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_a_part_that_is_damaged_during_the_run_is_named_and_the_next_run_does_it_anew(
    name: str, faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / name

    def cut() -> None:
        damage(first_part(output), "cut")

    with pytest.raises(ArchiveError, match=r"no longer what was written: .*part-00000\.parquet.*same command again"):
        make(faces, output, after_a_shard(cut))
    assert not output.exists()
    make(faces, output)
    assert content(output) == content(undisturbed / name)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
@pytest.mark.parametrize("case", ["cut", "changed"])
def test_an_archive_that_is_damaged_before_it_is_in_its_place_is_made_again(
    case: str,
    name: str,
    faces: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / name
    with monkeypatch.context() as patch:
        patch.setattr(LocalStaging, "_rename_into_place", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            make(faces, output)
    finished = staging_path(output) / "finished"
    damage(finished / "part-00000.parquet" if finished.is_dir() else finished, case)
    report = make(faces, output)
    assert f"{finished} is no longer what was written there" in caplog.text
    assert report.run is not None
    assert report.run.shards_resumed == (2 if name == "out" else 3)
    assert content(output) == content(undisturbed / name)


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_parts_that_are_not_those_of_their_shard_are_not_taken(
    name: str, faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / name
    part = interrupted(faces, output)
    for other in ("part-00002.parquet", "part-00099.parquet", "part-000001.parquet"):
        shutil.copy(part, part.with_name(other))
    report = make(faces, output)
    assert report.run is not None
    assert report.run.shards_resumed == 1
    assert content(output) == content(undisturbed / name)


def test_a_run_that_fails_before_its_first_shard_leaves_nothing(faces: Path, tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        raise SourceError("no more")

    with pytest.raises(SourceError, match="no more"):
        make(faces, tmp_path / "out", fail)
    assert not staging_path(tmp_path / "out").exists()


def test_a_plan_that_cannot_be_read_is_not_gone_on_from(faces: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    interrupted(faces, output)
    (staging_path(output) / "plan.json").write_bytes(b"\x00" * 10)
    with pytest.raises(StagingMismatch, match="its plan cannot be read"):
        make(faces, output)
    archive(faces, output, OPTIONS, RunOptions(workers=1, overwrite=True), codecs=CODECS)


def test_a_model_file_that_is_swapped_between_runs_is_another_run(drawn_faces: Path, tmp_path: Path) -> None:
    model, output = tmp_path / "mine.safetensors", tmp_path / "out.parquet"
    model.write_bytes(tiny_model().data)
    options = ArchiveOptions(model=str(model), exact="never", shard_size=10, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        archive(drawn_faces, output, options, RunOptions(workers=1), after_a_shard(interrupt))
    model.write_bytes(tiny_model().data.replace(b"tiny", b"tinY"))
    with pytest.raises(StagingMismatch, match="model of the latent codec: "):
        archive(drawn_faces, output, options, RunOptions(workers=1))


def test_a_model_file_that_is_damaged_is_refused(drawn_faces: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine.safetensors"
    model.write_bytes(tiny_model().data[:-100])
    with pytest.raises(ZippyError, match=r"mine\.safetensors"):
        archive(drawn_faces, tmp_path / "out", ArchiveOptions(model=str(model), device="cpu"), RunOptions(workers=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test_a_clock_that_jumps_changes_nothing(
    faces: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the archive nor whether a run is taken up depends on the time of day."""
    output = tmp_path / "out.parquet"
    monkeypatch.setattr(time, "time", lambda: 4e9)
    interrupted(faces, output)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    report = make(faces, output)
    assert report.run is not None
    assert report.run.shards_resumed == 1
    assert report.run.seconds < 600
    assert content(output) == content(undisturbed / output.name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_report_that_cannot_be_written_is_said_so(undisturbed: Path) -> None:
    command = [sys.executable, "-m", "zippy_batch", "stats", str(undisturbed / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "error: the report cannot be written to standard output: No space left on device" in done.stderr
