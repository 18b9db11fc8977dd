from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import CODECS, files_of, make_faces

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import OutputExists, UsageError, WriteError
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.run.report import Progress
from zippy_batch.run.restore_folder import FOLDER_NAME, restore_folder
from zippy_batch.stores import atomic_file

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
RESTORE = RestoreOptions(device="cpu")


def archived(source: Path, output: Path) -> Path:
    archive(source, output, OPTIONS, RunOptions(workers=1), codecs=CODECS)
    return output


def back(source: Path, destination: Path, overwrite: bool = False, options: RestoreOptions = RESTORE) -> None:
    restore(source, destination, options, RunOptions(workers=1, overwrite=overwrite), codecs=CODECS)


def half_restored(source: Path, destination: Path) -> Path:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(source, destination, RESTORE, RunOptions(workers=1), interrupt, CODECS)
    assert (destination / FOLDER_NAME / "restore.json").exists()
    return destination


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """An archive of two files of other names."""
    source = tmp_path / "notes"
    source.mkdir()
    for name in ("a.txt", "b.txt"):
        (source / name).write_text(name)
    return archived(source, tmp_path / "notes.parquet")


@pytest.mark.parametrize("what", ["a whole restore, once", "its folder, twice"])
def test_a_restore_killed_at_any_point_is_finished_by_the_next(what: str, notes: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("restore_crash_points.py")
    sources = [str(notes)] if "once" in what else []
    command = [sys.executable, str(script), str(tmp_path / "back"), *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12


@pytest.mark.parametrize("how", ["archived", "copied"])
def test_a_folder_that_is_somebodys_data_is_left_alone(how: str, faces: Path, notes: Path, tmp_path: Path) -> None:
    """A half-restored directory may be archived or copied with the folder in it."""
    half = half_restored(archived(faces, tmp_path / "faces.parquet"), tmp_path / "half")
    data = tmp_path / "data"
    if how == "archived":
        back(archived(half, tmp_path / "half.parquet"), data)
    else:
        shutil.copytree(half, data)
    before = files_of(data)
    assert any(path.startswith(FOLDER_NAME.encode()) for path in before)
    back(notes, data)
    assert files_of(data) == before | {b"a.txt": b"a.txt", b"b.txt": b"b.txt"}
    with pytest.raises(OutputExists):
        back(notes, data)


def test_a_restore_goes_on_beside_a_folder_that_is_somebodys_data(faces: Path, tmp_path: Path) -> None:
    made = archived(faces, tmp_path / "faces.parquet")
    (tmp_path / "back" / FOLDER_NAME).mkdir(parents=True)
    (tmp_path / "back" / FOLDER_NAME / "mine").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        restore(made, tmp_path / "back", RESTORE, RunOptions(workers=1), interrupt, CODECS)
    back(made, tmp_path / "back")
    assert len(files_of(tmp_path / "back")) == 12 + 1
    assert [path.name for path in (tmp_path / "back").glob(f"{FOLDER_NAME}*")] == [FOLDER_NAME]


def interrupt(progress: Progress) -> None:
    raise KeyboardInterrupt


def test_of_two_restores_into_one_directory_the_later_is_refused_and_changes_nothing(
    faces: Path, notes: Path, tmp_path: Path
) -> None:
    made, destination = archived(faces, tmp_path / "faces.parquet"), tmp_path / "back"
    refused = []

    def meanwhile(progress: Progress) -> None:
        for other in (made, notes):
            with pytest.raises(UsageError, match=r"another restore is writing to .*back \(.*is locked\); wait for it"):
                back(other, destination, overwrite=True)
            refused.append(other)

    restore(made, destination, RESTORE, RunOptions(workers=1), meanwhile, CODECS)
    assert refused
    assert len(files_of(destination)) == 12


def test_another_restore_makes_an_unfinished_one_ask_before_it_replaces_files(
    faces: Path, notes: Path, tmp_path: Path
) -> None:
    """Its files may by then be somebody else's."""
    made = archived(faces, tmp_path / "faces.parquet")
    half = half_restored(made, tmp_path / "half")
    back(notes, half)
    with pytest.raises(OutputExists, match="of the files are in"):
        back(made, half)


def test_a_restore_that_is_refused_leaves_an_unfinished_one_as_it_was(faces: Path, tmp_path: Path) -> None:
    made = archived(faces, tmp_path / "faces.parquet")
    half = half_restored(made, tmp_path / "half")
    with pytest.raises(OutputExists):
        back(made, half, options=RestoreOptions(device="cpu", select=("*",)))
    back(made, half)
    assert len(files_of(half)) == 12


def test_what_others_put_into_the_folder_stays(notes: Path, tmp_path: Path) -> None:
    with restore_folder(tmp_path / "back", set()) as folder:
        folder.begin("{}")
        (folder.path / "mine").write_text("mine")
        folder.finish()
    assert (tmp_path / "back" / FOLDER_NAME / "mine").read_text() == "mine"
    back(notes, tmp_path / "back")


def test_a_place_that_takes_no_folder_is_refused_and_not_tried_for_ever(notes: Path) -> None:
    with pytest.raises(UsageError, match="cannot restore into /proc"):
        back(notes, Path("/proc"))


def test_files_and_directories_are_on_disk_before_the_restore_counts_as_done(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, destination = archived(faces, tmp_path / "faces.parquet"), tmp_path / "new" / "back"
    plan = destination / FOLDER_NAME / "restore.json"
    flushed: list[Path] = []
    real = atomic_file.flush

    def flush(path: Path | bytes) -> None:
        if plan.exists():
            flushed.append(Path(os.fsdecode(path)))
        real(path)

    monkeypatch.setattr(atomic_file, "flush", flush)
    back(made, destination)
    files = [path for path in destination.rglob("*") if path.is_file()]
    directories = {*(path.parent for path in files), destination, tmp_path / "new", tmp_path}
    assert {*files, *directories} <= {*flushed}
    assert max(map(flushed.index, files)) < min(map(flushed.index, directories - {destination / FOLDER_NAME}))
    flushed.clear()
    back(made, tmp_path / "unsynced", options=RestoreOptions(device="cpu", sync=False))
    assert not [path for path in flushed if path.is_file() and path.parent.name != FOLDER_NAME]


def test_a_file_that_does_not_get_to_disk_is_named_and_the_restore_goes_on_later(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archived(faces, tmp_path / "faces.parquet")
    real = atomic_file.flush

    def fail(path: Path | bytes) -> None:
        if os.fsdecode(path).endswith("3.jpg"):
            raise OSError(5, "Input/output error")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file, "flush", fail)
        with pytest.raises(WriteError, match=r"3\.jpg cannot be brought to disk: Input/output error; check the disk"):
            back(made, tmp_path / "back")
    back(made, tmp_path / "back")
    assert len(files_of(tmp_path / "back")) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is a call of Linux")
@pytest.mark.parametrize("works", [True, False])
def test_many_files_are_brought_to_disk_with_their_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """One by one where that does not work, so that an error names its file."""
    paths = [os.fsencode(tmp_path / str(i)) for i in range(200)]
    for path in paths:
        Path(os.fsdecode(path)).touch()
    flushed: list[bytes] = []
    synced: list[int] = []

    def sync(descriptor: int) -> int:
        synced.append(os.fstat(descriptor).st_dev)
        return 0 if works else -1

    monkeypatch.setattr(atomic_file, "flush", flushed.append)
    monkeypatch.setattr(atomic_file, "_sync_call", lambda: sync)
    monkeypatch.setattr(atomic_file, "_kind_of_file_system", lambda device: "ext4")
    atomic_file.flush_all(paths)
    assert synced == [tmp_path.stat().st_dev]
    assert flushed == [] if works else sorted(flushed) == sorted(paths)
    flushed.clear()
    atomic_file.flush_all(paths[:10])
    assert sorted(flushed) == sorted(paths[:10])
    flushed.clear()
    # what a file system of another machine makes of the call, nobody knows
    monkeypatch.setattr(atomic_file, "_kind_of_file_system", lambda device: "fuse")
    atomic_file.flush_all(paths)
    assert sorted(flushed) == sorted(paths)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs the list of mounts of Linux")
def test_the_kind_of_a_file_system_is_known() -> None:
    assert atomic_file._kind_of_file_system(os.stat("/proc").st_dev) == "proc"
    assert atomic_file._kind_of_file_system(os.makedev(4000, 7)) is None


def test_several_patterns_select_what_any_of_them_matches(faces: Path, tmp_path: Path) -> None:
    made = archived(faces, tmp_path / "faces.parquet")
    options = RestoreOptions(device="cpu", format="png", select=("sub/*.png", "3.jpg", "sub/0.png"))
    back(made, tmp_path / "back", options=options)
    assert {path.split(b".")[0] for path in files_of(tmp_path / "back")} == {b"sub/0", b"sub/1", b"3"}
    with pytest.raises(UsageError, match=r"no row of .* matches '\*\.gif' or '\*\.bmp'$"):
        back(made, tmp_path / "none", options=RestoreOptions(device="cpu", select=("*.gif", "*.bmp")))


def test_a_directory_named_like_a_file_is_made_only_by_who_means_it(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"files are restored to a directory, and its name ends in \.tar"):
        back(notes, tmp_path / "back.tar")
    (tmp_path / "back.tar").mkdir()
    back(notes, tmp_path / "back.tar")
