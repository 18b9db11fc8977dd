"""An archive in an object store that is appended to and erased from: at every moment old or new, and one receipt."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import CODECS, EXACT_MODEL, MODEL
from fsspec.implementations.memory import MemoryFileSystem
from rows import face_rows, info_for, labelled, rows_of, write_archive
from s3 import content, upload

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.config import AppendOptions, RunOptions
from zippy_batch.errors import ArchiveError, StorageError, UsageError, ZippyError
from zippy_batch.run.append import append
from zippy_batch.run.erase import Erasure, erase
from zippy_batch.run.merge import merge
from zippy_batch.run.pipeline import verify
from zippy_batch.run.rewrite import recover
from zippy_batch.run.staging_object import object_staging_path, open_object_staging
from zippy_batch.stores import lease
from zippy_batch.stores.object_path import ObjectPath, listed, place, put_bytes

ROWS = labelled(face_rows(40))
"""10 in each of 4 shards; with the label id_3 are some of the shards 1 and 3."""
WISH = Erasure("label == 'id_3'")
BEFORE = 4
"""How many steps before the first of those that put the next state in its place are looked at, too."""
GONE = [row for row in ROWS if row.label == "id_3"]
INFO = ArchiveInfo(
    FORMAT_VERSION, {"latent": MODEL.id, "exact": EXACT_MODEL.id}, {"quality": 75, "shard_size": 2, "batch_size": 3}, ()
)


class Store:
    """What is written to the file system of fsspec in memory, which fails from some moment on."""

    def __init__(self) -> None:
        self.left: int | None = None
        """How many things it still does; None for any number."""
        self.before: Callable[[], object] = lambda: None
        """Called before each thing that it does."""
        self._one_at_a_time = threading.Lock()
        """What reads a file in memory moves it for all others who do."""

    def step(self) -> None:
        with self._one_at_a_time:
            self.before()
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OSError("the store has gone")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    made = Store()

    def watched(name: str) -> Callable[..., Any]:
        does = getattr(MemoryFileSystem, name)

        def call(self: MemoryFileSystem, *arguments: Any, **more: Any) -> Any:
            if name != "open" or "w" in more.get("mode", "rb"):
                made.step()
            return does(self, *arguments, **more)

        return call

    for name in ("open", "copy", "rm"):
        monkeypatch.setattr(MemoryFileSystem, name, watched(name))
    monkeypatch.chdir(tmp_path)
    yield made
    made.left, made.before = None, lambda: None
    MemoryFileSystem.store.clear()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Two files that are new, and one in place of a row."""
    (tmp_path / "faces").mkdir()
    for name in ("a.txt", "b.txt", "000008.jpg"):
        (tmp_path / "faces" / name).write_bytes(name.encode())
        os.utime(tmp_path / "faces" / name, (10, 10))
    return tmp_path / "faces"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write_archive(tmp_path / "old.parquet", ROWS, 10, INFO)
    return write_archive(tmp_path / "old", ROWS, 10, INFO)


def at(name: str) -> ObjectPath:
    found = place(f"memory://bucket/{name}")
    assert isinstance(found, ObjectPath)
    return found


def laid(old: Path, output: ObjectPath) -> ObjectPath:
    """The archive as it was, and nothing else."""
    MemoryFileSystem.store.clear()
    if output.suffix:
        put_bytes(old.with_suffix(".parquet").read_bytes(), output)
    else:
        upload(old, output)
    return output


def add(faces: Path, output: ObjectPath, update: bool) -> None:
    append(faces, output, AppendOptions(update=update, device="cpu"), RunOptions(workers=1), None, CODECS)


def run_of(command: str, faces: Path, output: ObjectPath) -> None:
    if command != "erase":
        add(faces, output, command == "update")
        return
    recover(output)
    if GONE[0] in rows_of(output):
        erase(output, WISH)


def receipts() -> list[dict[str, Any]]:
    """And takes them away."""
    found = []
    for path in Path.cwd().glob("*.json*"):
        found.append(json.loads(path.read_bytes()))
        path.unlink()
    return found


@pytest.mark.parametrize(
    ("name", "command", "stride"),
    [("out", "append", 4), ("out", "update", 1), ("out", "erase", 2), ("out.parquet", "erase", 3)],
)
def test_at_every_moment_a_reader_finds_old_or_new_and_the_next_run_finishes(
    name: str, command: str, stride: int, old: Path, faces: Path, store: Store
) -> None:
    """The store fails at every step of one command, and at some of those that take the same ones."""
    output = laid(old, at(name))
    seen: list[list[Row]] = []
    begun: list[bool] = []

    def look() -> None:
        seen.append(rows_of(output))
        begun.append(swapping(output))

    store.before = look
    run_of(command, faces, output)
    store.before = lambda: None
    expected, new = content(output), rows_of(output)
    assert new != ROWS
    assert all(rows in (ROWS, new) for rows in seen)
    assert ROWS in seen
    made = receipts()
    first = point = begun.index(True) - BEFORE
    while True:
        laid(old, output)
        store.left = point
        try:
            run_of(command, faces, output)
            break
        except (ZippyError, OSError):
            pass
        assert rows_of(output) in (ROWS, new), f"point {point}"
        store.left = None
        run_of(command, faces, output)
        assert content(output) == expected, f"point {point}"
        assert not [info for info in listed(object_staging_path(output), recursive=True) if info.is_file]
        found = receipts()
        assert [one["after"] for one in found] == [one["after"] for one in made], f"point {point}"
        point += stride
    assert point > first + 10


def test_an_archive_that_is_overwritten_is_the_old_or_the_new_one(old: Path, store: Store, tmp_path: Path) -> None:
    """Also where they have other models, and other numbers of parts."""
    models = [{"latent": bytes([i]) * 1000} for i in range(2)]
    new = write_archive(tmp_path / "new", ROWS[5:25], 5, info_for(model_files=models[1]))
    output = laid(write_archive(tmp_path / "with model", ROWS, 3, info_for(model_files=models[0])), at("out"))
    seen: list[tuple[int, Mapping[str, bytes]]] = []

    def look() -> None:
        with ArchiveReader.open(output) as opened:
            rows = [row for shard in opened.shards() for row in opened.read_rows(shard)]
        assert rows in (ROWS, ROWS[5:25])
        seen.append((len(rows), opened.info.model_files))

    store.before = look
    merge([new], output, overwrite=True)
    store.before = lambda: None
    assert {number for number, _ in seen} == {20, 40}
    assert all(files == models[number == 20] for number, files in seen)
    before = content(output)
    put_bytes(b"damaged", output / "part-00000.parquet")
    merge([new], output, overwrite=True)
    assert content(output) == before


def test_parts_that_stay_are_not_touched(old: Path, faces: Path, store: Store) -> None:
    output = laid(old, at("out"))
    with ArchiveReader.open(output) as opened:
        before = [opened.read_rows(shard) for shard in opened.shards()]
        add(faces, output, update=False)
        assert [opened.read_rows(shard) for shard in opened.shards()] == before
    assert {name: data for name, data in content(output).items() if name in content(old) and name[0] != "_"} == {
        name: data for name, data in content(old).items() if name[0] != "_"
    }
    assert verify(output).exit_code == 0


def test_a_part_that_loses_all_its_rows_is_left_out(old: Path, store: Store) -> None:
    output = laid(old, at("out"))
    report = erase(output, Erasure(paths=tuple(row.path for row in ROWS[10:20])))
    assert rows_of(output) == [*ROWS[:10], *ROWS[20:]]
    assert sorted(content(output)) == ["_manifest.json", *(f"part-0000{i}.parquet" for i in range(3))]
    [receipt] = receipts()
    assert report.receipt is not None
    assert set(receipt["before"]) - set(receipt["after"]) == {"part-00003.parquet"}
    data = b"".join(content(output.parent).values())
    assert not [row for row in ROWS[10:20] if row.payload in data or row.path in data]


def test_two_at_once_do_not_mix(old: Path, faces: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "WITHDRAWAL_S", 0.1)
    output = laid(old, at("out"))
    before = content(output)
    with (
        open_object_staging(output, "f" * 64, {}, True),
        pytest.raises(UsageError, match="another run is writing here"),
    ):
        add(faces, output, update=False)
    assert content(output) == before


def test_a_reader_that_meets_a_part_of_the_next_state_is_told_to_open_again(old: Path, store: Store) -> None:
    output = laid(old, at("out"))
    with ArchiveReader.open(output) as opened:
        erase(output, WISH)
        with pytest.raises(ArchiveError, match="was changed after it was opened, and part 1 is another one; open it"):
            opened.row_groups(1)


def test_what_is_left_of_a_swap_is_not_put_over_another_archive(old: Path, faces: Path, store: Store) -> None:
    output = laid(old, at("out"))
    store.before = lambda: (_ for _ in ()).throw(OSError("gone")) if swapping(output) else None
    with pytest.raises(StorageError):
        add(faces, output, update=False)
    store.before = lambda: None
    other = write_archive(old.with_name("other"), ROWS[:20], 10, INFO)
    for info in listed(output):
        MemoryFileSystem().rm(info.path)
    upload(other, output)
    add(faces, output, update=False)
    assert rows_of(output)[:20] == ROWS[:20]
    assert len(rows_of(output)) == 22


def swapping(output: ObjectPath) -> bool:
    return (object_staging_path(output) / "swap.json").exists()
