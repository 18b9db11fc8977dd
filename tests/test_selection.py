"""--include, --exclude and --exclude-from, for every source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import CODECS, make_faces
from holders import image_record, images_column, member, write_parquet, write_rec, write_tar, write_zip
from s3 import S3, upload
from s3 import s3 as s3
from s3 import s3_server as s3_server
from typer.testing import CliRunner

from zippy_batch.cli.app import app
from zippy_batch.config import ArchiveOptions
from zippy_batch.errors import UsageError
from zippy_batch.run.pipeline import archive, verify
from zippy_batch.sources import Wanted, list_source
from zippy_batch.sources.selection import patterns_in
from zippy_batch.stores.object_path import Place

NAMES = ("a.jpg", "b.png", "id_1/a.jpg", "id_1/notes.txt", "id_2/deep/b.jpg", "id_2/deep/Thumbs.db")


def directory(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "in" / name).write_bytes(data)
    return path / "in"


def text_list(path: Path, files: Mapping[str, bytes]) -> Path:
    (directory(path, files) / "list.txt").write_text("\n".join(files))
    return path / "in" / "list.txt"


KINDS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "directory": directory,
    "list": text_list,
    "tar": lambda path, files: write_tar(path / "x.tar", files),
    "zip": lambda path, files: write_zip(path / "x.zip", files),
    "parquet": lambda path, files: write_parquet(path / "x.parquet", {"image": images_column(files)}),
}


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return KINDS[request.param](tmp_path, dict.fromkeys(NAMES, b"x"))


def listed(source: Place, **wanted: Any) -> list[str]:
    return [file.path.decode() for file in list_source(source, Wanted(**wanted))[1].files]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), sorted(NAMES)),
        (("*.jpg",), (), ["a.jpg", "id_1/a.jpg", "id_2/deep/b.jpg"]),
        (("*.jpg", "*.png"), ("id_2",), ["a.jpg", "b.png", "id_1/a.jpg"]),
        (("id_*",), ("*.txt", "Thumbs.db"), ["id_1/a.jpg", "id_2/deep/b.jpg"]),
        (("id_*/a.jpg",), (), ["id_1/a.jpg"]),
        (("/a.jpg",), (), ["a.jpg"]),
        ((), ("**/deep", "?.png"), ["a.jpg", "id_1/a.jpg", "id_1/notes.txt"]),
    ],
)
def test_patterns_choose_files(source: Path, include: Any, exclude: Any, expected: list[str]) -> None:
    assert listed(source, include=include, exclude=exclude) == expected


def test_objects_of_a_store_are_chosen(s3: S3, tmp_path: Path) -> None:
    upload(directory(tmp_path, dict.fromkeys(NAMES, b"x")), s3.at("faces"))
    assert listed(s3.at("faces"), include=("*.jpg",), exclude=("id_1",)) == ["a.jpg", "id_2/deep/b.jpg"]


def test_records_are_chosen(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(b"x", i) for i in range(3)])
    assert listed(source, exclude=("00000001.*",)) == ["00000000.bin", "00000002.bin"]


def test_what_is_left_out_is_not_refused(tmp_path: Path) -> None:
    source = directory(tmp_path, {"a.jpg": b"x", "private/x.jpg": b"y"})
    os.mkfifo(source / "pipe")
    (source / "away").symlink_to("/nowhere")
    (source / "private" / "loop").symlink_to("..")
    with pytest.raises(UsageError, match="3 entries cannot be archived"):
        listed(source)
    assert listed(source, exclude=("pipe", "away", "private")) == ["a.jpg"]
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"x"}, [member("null", type=b"3")])
    assert listed(tar, exclude=("null",)) == ["a.jpg"]


def test_links_lead_to_members_that_are_left_out(tmp_path: Path) -> None:
    links = [member("b/x.jpg", type=b"1", linkname="a/x.jpg")]
    assert listed(write_tar(tmp_path / "x.tar", {"a/x.jpg": b"1"}, links), exclude=("a",)) == ["b/x.jpg"]


def test_files_beside_shards_and_shards_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(tmp_path / "in" / name, {"0.jpg": b"0", "0.json": b""})
    (tmp_path / "in" / "README.md").write_bytes(b"")
    wanted = {"input": "tar", "include": ("*.jpg",), "exclude": ("README.md", "val-*.tar")}
    assert listed(tmp_path / "in", **wanted) == ["train-0/0.jpg", "train-1/0.jpg"]


def test_what_is_left_out_is_counted_and_what_systems_leave_is_named(tmp_path: Path) -> None:
    names = [*NAMES, ".DS_Store", "id_1/.DS_Store", "__MACOSX/id_1/._a.jpg", "._b.png"]
    source = directory(tmp_path, dict.fromkeys(names, b"x"))
    _, listing = list_source(source, Wanted())
    assert listing.notes == (
        "files that systems leave beside others are archived, too: 2 of .DS_Store, 1 of ._*, 1 of Thumbs.db, "
        "1 of __MACOSX; --exclude leaves them out",
    )
    _, listing = list_source(source, Wanted(exclude=("__MACOSX", "._*", ".DS_Store", "Thumbs.db")))
    assert listing.notes == ("left out by --include and --exclude, where a folder counts once: 5",)


def test_patterns_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_bytes("\ufeff# a comment\n\n*.txt  \r\n__MACOSX\n/top\n".encode())
    assert patterns_in(tmp_path / "patterns") == ("*.txt", "__MACOSX", "/top")
    for text, message in (
        (b"*.txt\n!a.txt", r"patterns, line 2: '!a\.txt' would take files in again"),
        (b"\xff", "no list of patterns"),
    ):
        (tmp_path / "patterns").write_bytes(text)
        with pytest.raises(UsageError, match=message):
            patterns_in(tmp_path / "patterns")
    with pytest.raises(UsageError, match=r"cannot read the patterns .*: No such file"):
        patterns_in(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["", "[z-a]"])
def test_patterns_that_cannot_be_are_refused(source: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="the pattern"):
        listed(source, exclude=(pattern,))


def test_an_archive_is_verified_by_the_patterns_that_it_was_made_by(tmp_path: Path) -> None:
    source = make_faces(tmp_path / "faces")
    (tmp_path / "patterns").write_text("*.png\nempty\n")
    options = ArchiveOptions(
        device="cpu", exact="always", include=("*.jpg", "sub", "empty"), exclude_from=tmp_path / "patterns"
    )
    report = archive(source, tmp_path / "out.parquet", options, codecs=CODECS)
    assert report.total.images == 8
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
    (source / "more.png").write_bytes(b"left out")
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
    (source / "more.jpg").write_bytes(b"not left out")
    assert [one.path for one in verify(tmp_path / "out.parquet", source, codecs=CODECS).missing] == ["more.jpg"]


def test_the_command_line_takes_patterns(tmp_path: Path) -> None:
    source = make_faces(tmp_path / "faces")
    command = ["archive", str(source), str(tmp_path / "out.parquet"), "--exact", "--workers", "1", "--device", "cpu"]
    result = CliRunner().invoke(
        app, [*command, "--include", "*.jpg", "--include", "*.png", "--exclude", "sub", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["options"]["include"] == ["*.jpg", "*.png"]
    paths = pq.read_table(tmp_path / "out.parquet", columns=["path"])["path"].to_pylist()
    assert paths == [*(f"{i}.jpg" for i in range(7)), "broken.jpg"]
