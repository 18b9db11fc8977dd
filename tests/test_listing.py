"""Directories as they are listed, files as they are read, and paths."""

from __future__ import annotations

import os
import pickle
import random
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zippy_batch.config import ArchiveOptions
from zippy_batch.errors import ArchiveError, SourceError, UsageError
from zippy_batch.paths import display_path, path_problem, safe_relative_path
from zippy_batch.run.plan import plan_archive
from zippy_batch.sources import directory
from zippy_batch.sources.directory import MAX_FILE_BYTES, Files, Listing, SourceFile, list_files, read_file


def paths_of(listing: Listing) -> list[bytes]:
    return [file.path for file in listing.files]


def test_listing_is_sorted_by_bytes_and_complete(tmp_path: Path) -> None:
    names = [
        "b/2.jpg",
        "b/1.jpg",
        "b.jpg",
        "B.jpg",
        "a b/c'd\n\"e.jpg",
        "-dash",
        ".hidden",
        "ünï/文字.png",
        "b/x/y",
        "a:b*?",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "nothing" / "at all").mkdir(parents=True)
    listing = list_files(tmp_path)
    assert paths_of(listing) == sorted(os.fsencode(name) for name in names)
    assert listing.empty_directories == 1
    for file in listing.files:
        assert read_file(tmp_path, file) == file.path
        assert file.size_bytes == len(file.path)
        assert file.mtime_s == os.stat(os.path.join(os.fsencode(tmp_path), file.path)).st_mtime_ns // 10**9


def test_names_that_are_not_text_are_kept_byte_for_byte(tmp_path: Path) -> None:
    names = [b"\xff\xfe.jpg", b"caf\xe9.jpg", b"\x80/\xc3\x28.png"]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"x")
    assert paths_of(list_files(tmp_path)) == sorted(names)


def test_times_before_1970_round_down(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    os.utime(tmp_path / "old", ns=(-1_500_000_000, -1_500_000_000))
    (file,) = list_files(tmp_path).files
    assert file == SourceFile(b"old", 0, -2)
    assert read_file(tmp_path, file) == b""


def test_links_inside_the_tree_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "people").mkdir(parents=True)
    (root / "people" / "a.jpg").write_bytes(b"face")
    (root / "relative.jpg").symlink_to("people/a.jpg")
    (root / "absolute.jpg").symlink_to(root / "people" / "a.jpg")
    (root / "folder").symlink_to("people", target_is_directory=True)
    (root / "chain").symlink_to("folder")
    listing = list_files(root)
    assert paths_of(listing) == [b"absolute.jpg", b"chain/a.jpg", b"folder/a.jpg", b"people/a.jpg", b"relative.jpg"]
    assert {read_file(root, file) for file in listing.files} == {b"face"}


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"1")
    (tmp_path / "real" / "b").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "alias").symlink_to("real")
    listing = list_files(tmp_path / "alias")
    assert paths_of(listing) == [b"a", b"b"]
    assert read_file(tmp_path / "alias", listing.files[1]) == b"1"


def test_links_that_cannot_be_followed_are_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "secret").write_bytes(b"s")
    (root / "outside.jpg").symlink_to("/etc/passwd")
    (root / "beside").symlink_to("../root-beside")
    (root / "broken.jpg").symlink_to("nowhere")
    (root / "self").symlink_to("self")
    (root / "sub" / "up").symlink_to("..")
    with pytest.raises(UsageError) as caught:
        list_files(root)
    message = str(caught.value)
    assert "5 entries" in message
    for name in ("outside.jpg: link to something outside", "beside: link to something outside", "broken.jpg: broken"):
        assert name in message
    assert "self: broken or circular" in message
    assert "sub/up: link to a directory that it is in" in message


def test_links_that_multiply_are_refused(tmp_path: Path) -> None:
    for level in range(14):
        (tmp_path / str(level)).mkdir()
    for level in range(13):
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    with pytest.raises(UsageError, match="1000 paths"):
        list_files(tmp_path)


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        previous = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(previous)
        with pytest.raises(UsageError, match="neither a file nor a directory") as caught:
            list_files(tmp_path)
    assert "2 entries" in str(caught.value)


def test_large_files_are_refused_by_name(tmp_path: Path) -> None:
    for i in range(15):
        with (tmp_path / f"large-{i:02d}").open("wb") as stream:
            stream.truncate(MAX_FILE_BYTES + 1)
    with (tmp_path / "just-right").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES)
    with pytest.raises(UsageError) as caught:
        list_files(tmp_path)
    message = str(caught.value)
    assert "15 entries" in message
    assert "large-00: 1073741825 bytes" in message
    assert "and 5 more" in message
    assert "just-right" not in message


def test_unreadable_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the super-user may read anything
    with pytest.raises(UsageError, match=r"one entry .*\n +secret.jpg: may not be read"):
        list_files(tmp_path)


def test_names_that_only_windows_refuses_are_listed(tmp_path: Path) -> None:
    for name in ("NUL", "\\a", "a:b"):
        (tmp_path / name).write_bytes(b"x")
    assert {file.path for file in list_files(tmp_path).files} == {b"NUL", b"\\a", b"a:b"}


@pytest.mark.parametrize("name", ["missing", "file"])
def test_only_a_directory_can_be_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="not a directory"):
        list_files(tmp_path / name)


def test_deep_trees_are_walked(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"1")
    (file,) = list_files(tmp_path).files
    assert file.path == b"d/" * 300 + b"f"


def test_changed_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    (file,) = list_files(tmp_path).files
    os.utime(path, (1, 1))
    with pytest.raises(SourceError, match=r"a\.jpg: changed during the run"):
        read_file(tmp_path, file)
    path.write_bytes(b"123456")
    with pytest.raises(SourceError, match="expected 5 bytes"):
        read_file(tmp_path, file)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        read_file(tmp_path, file)
    os.mkfifo(path)
    with pytest.raises(SourceError, match="changed"):
        read_file(tmp_path, file)


# ----------------------------------------------------------------------------------------------------------- many files


def numbered(count: int) -> list[SourceFile]:
    return [
        SourceFile(
            b"%02d/%d\xff.jpg" % (i % 7, i), i * i, i - 100, f"label {i % 3}" if i % 5 else None, (0, i) * (i % 2)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 128, 129, 500])
@pytest.mark.parametrize("order", ["sorted", "reversed", "mixed"])
def test_packed_files_are_those_that_were_given_in_order(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, count: int, order: str
) -> None:
    monkeypatch.setattr(directory, "_BLOCK_FILES", 16)
    monkeypatch.setattr(directory, "_SORTED_FILES", 128)
    monkeypatch.setattr(directory, "_IN_MEMORY_BYTES", in_memory)
    expected = sorted(numbered(count), key=lambda file: file.path)
    given = {"sorted": expected, "reversed": expected[::-1], "mixed": random.Random(0).sample(expected, count)}[order]
    files = Files(iter(given))
    assert list(files) == expected
    assert len(files) == count
    assert [files[i] for i in range(count)] == expected
    for cut in (slice(None), slice(3, 40), slice(100, 130), slice(-5, None), slice(7, 3), slice(None, None, 50)):
        assert files[cut] == tuple(expected[cut])
    sizes = [file.size_bytes for file in expected]
    assert [files.bytes_before(i) for i in range(count + 1)] == [0, *accumulate(sizes)]
    assert files.size_bytes == sum(sizes)
    assert files.labelled == any(file.label for file in expected)
    for outside in (count, -count - 1):
        with pytest.raises(IndexError):
            files[outside]


def test_one_list_may_be_read_while_it_is_being_read() -> None:
    files = Files(numbered(5000))
    assert all(files[i] == file for i, file in enumerate(files) if i % 100 == 0)


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_a_list_is_read_by_threads_and_children_at_once_and_sent_nowhere(
    monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(directory, "_IN_MEMORY_BYTES", in_memory)
    expected = sorted(numbered(2000), key=lambda file: file.path)
    files = Files(expected)
    child = os.fork()
    right = all(list(files) == expected for _ in range(3))
    if child == 0:
        os._exit(0 if right else 1)
    assert right
    assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(4) as pool:
        places = random.Random(0).choices(range(2000), k=800)
        assert list(pool.map(files.__getitem__, places)) == [expected[place] for place in places]
    with pytest.raises(TypeError, match="not sent to workers"):
        pickle.dumps(files)


def test_numbers_of_other_kinds_are_kept_as_numbers() -> None:
    size_bytes, mtime_s = (cast(int, np.int64(number)) for number in (5, -7))
    (file,) = Files([SourceFile(b"a", size_bytes, mtime_s)])
    assert (file.size_bytes, file.mtime_s) == (5, -7)
    assert type(file.size_bytes) is int


def test_a_listing_holds_few_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_SORTED_FILES", 8192)
    monkeypatch.setattr(directory, "_IN_MEMORY_BYTES", 1 << 10)
    tracemalloc.start()
    try:
        # every second one is out of order
        files = Files(SourceFile(b"%012d.jpg" % (i ^ 1 << 14), 900, 1_000_000) for i in range(100_000))
        plan = plan_archive(Listing(files, 0), ArchiveOptions(device="cpu"), {})
        assert sum(len(plan.shard(i).files) for i in range(len(plan))) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 100,000 of them take 17 MB
    assert peak < 5 << 20


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/", b"/etc/passwd", b"..", b"../a", b"a/../b", b"a/..", b".", b"./a", b"a//b", b"a/", b"a/./b", b"a\0b",
    ],
)  # fmt: skip
def test_paths_that_leave_the_destination_are_refused(path: bytes) -> None:
    with pytest.raises(ArchiveError, match="refused to restore"):
        safe_relative_path(path)


@pytest.mark.parametrize(
    "path",
    [
        b"a", b"a/b/c.jpg", b"...", b"..a", b"a..", b".hidden", b"-rf", b"a b", b"a\nb", b"a:b", b"CONSOLE", b"con.jpg",
        b"nul.tar.gz", b"com10", b"a\\b", b"\xff\xfe", "ü/文.jpg".encode(), b"~", b"$HOME", b"con", b"a/Aux", b"nul.",
        b"\\a", b"\\\\host\\share", b"..\\a", b"C:\\a", b"c:/a", b"a ", b"a.",
    ],
)  # fmt: skip
def test_odd_but_harmless_paths_are_taken(path: bytes) -> None:
    safe_relative_path(path)


@pytest.mark.parametrize(
    "path",
    [
        b"con.jpg", b"a:b", b"a.", b"a ", b"a/b?", b"a\\b", b"x\ny", b"..\\a", b"a\\..\\..\\b", b"\\a",
        b"\\\\host\\share", b"C:\\a", b"c:/a", b"z:", b"CON", b"nul", b"a/Aux", b"com1", b"a/LPT9/b", b"con ", b"nul.",
    ],
)  # fmt: skip
def test_windows_refuses_more(path: bytes) -> None:
    assert path_problem(path, on_windows=False) is None
    problem = path_problem(path, on_windows=True)
    assert problem is not None
    assert "on Windows" in problem


@given(st.binary(max_size=30))
@settings(max_examples=500)
def test_safe_paths_stay_inside(path: bytes) -> None:
    try:
        safe_relative_path(path)
    except ArchiveError:
        return
    joined = os.path.normpath(os.path.join(b"/destination", path))
    assert joined == b"/destination/" + path


def test_paths_are_shown_as_text() -> None:
    assert display_path("ü/文.jpg".encode()) == "ü/文.jpg"
    assert display_path(b"caf\xe9.jpg") == "caf\\xe9.jpg"
    assert display_path("a\nb\x1b[31m\x9b\u202e.jpg".encode()) == r"a\x0ab\x1b[31m\x9b\u202e.jpg"
    assert display_path("\ud800".encode("utf-8", "surrogatepass")).encode()
