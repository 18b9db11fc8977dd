"""What restore would refuse after a run is refused before it, whatever the source."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fakes import CODECS, files_of, pixels
from holders import images_column, write_parquet, write_tar, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s3 import S3
from s3 import s3 as s3
from s3 import s3_server as s3_server

from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.errors import UsageError
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.sources import Wanted, list_source
from zippy_batch.sources.clashes import clashes
from zippy_batch.sources.directory import Files, SourceFile

LOSSY = ArchiveOptions(device="cpu", exact="never")
EXACT = ArchiveOptions(device="cpu", exact="always")


def picture(format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    # large enough that no lossy payload of the tests' codec is longer
    Image.fromarray(pixels(1, 48, 48)).save(stream, format, **options)
    return stream.getvalue()


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
def write(request: pytest.FixtureRequest) -> Callable[[Path, Mapping[str, bytes]], Path]:
    return KINDS[request.param]


Write = Callable[[Path, Mapping[str, bytes]], Path]


def test_a_picture_is_not_restored_over_another_file(write: Write, tmp_path: Path) -> None:
    source = write(tmp_path, {"a.png": picture(), "a.png.jpg": picture("JPEG"), "a.png-x.png": picture()})
    message = "one entry cannot be archived.*\n  a.png: would be restored as a.png.jpg, which is there as well"
    with pytest.raises(UsageError, match=message):
        archive(source, tmp_path / "out.parquet", LOSSY, codecs=CODECS)
    assert not list(tmp_path.glob("out*"))


def test_a_picture_is_not_restored_over_a_directory(write: Write, tmp_path: Path) -> None:
    source = write(tmp_path, {"a.png": picture(), "a.png.jpg/b.jpg": picture("JPEG")})
    with pytest.raises(UsageError, match=r"a\.png: would be restored as a\.png\.jpg"):
        archive(source, tmp_path / "out.parquet", LOSSY, codecs=CODECS)


def test_a_name_has_room_for_the_suffix_that_restore_adds(write: Write, tmp_path: Path) -> None:
    long = "x" * 248 + ".png"
    source = write(tmp_path, {long: picture(), "y" * 247 + ".png": picture()})
    with pytest.raises(UsageError, match=f"one entry cannot be archived.*\n  {long}: too long for the suffix .jpg"):
        archive(source, tmp_path / "out.parquet", LOSSY, codecs=CODECS)


def test_what_comes_back_as_it_was_is_in_nobodys_way(write: Write, tmp_path: Path) -> None:
    files = {
        "a.png": b"no picture",
        "a.png.jpg": picture("JPEG"),
        "b": picture("JPEG"),
        "b.jpg": picture("JPEG"),
        "c.jpg": picture(),
        "c.jpg.jpg": picture("JPEG"),
        "x" * 250 + ".txt": b"",
    }
    archive(write(tmp_path, files), tmp_path / "out.parquet", LOSSY, codecs=CODECS)
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    assert {path.decode() for path in files_of(tmp_path / "back")} == set(files)


def test_an_exact_archive_restores_names_as_they_are(write: Write, tmp_path: Path) -> None:
    files = {"a.png": picture(), "a.png.jpg": picture("JPEG"), "x" * 251 + ".png": picture()}
    archive(write(tmp_path, files), tmp_path / "out.parquet", EXACT, codecs=CODECS)
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    assert {path.decode(): data for path, data in files_of(tmp_path / "back").items()} == files


def test_pictures_of_shared_cases(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.png: would be restored as a\.png\.jpg"):
        archive(shared / "cases" / "names" / "clash", tmp_path / "out.parquet", LOSSY, codecs=CODECS)


# ---- files and directories of one name ----


def test_keys_of_a_store_that_no_directory_holds_are_refused(s3: S3, tmp_path: Path) -> None:
    root = s3.at("faces")
    for key in ("d/a", "d/a/b", "d/a!", "n" * 256, "ok.jpg"):
        with root.filesystem().open_output_stream((root / key).key) as stream:
            stream.write(b"x")
    with pytest.raises(UsageError) as caught:
        archive(root, tmp_path / "out.parquet", EXACT, codecs=CODECS)
    assert "2 entries cannot be archived" in str(caught.value)
    assert "d/a: a file, and a directory of other files" in str(caught.value)
    assert "path of 256 bytes with a name of 256" in str(caught.value)


def test_other_beginnings_of_paths_are_no_clash(tmp_path: Path) -> None:
    names = ["a", "a!", "a.b", "a-/c", "b/c", "b/c.d", "b/c-/e"]
    source = write_tar(tmp_path / "x.tar", dict.fromkeys(names, b""))
    assert len(list_source(source, Wanted())[1].files) == len(names)


parts = st.text("ab.!", min_size=1, max_size=2).filter(lambda part: part not in (".", ".."))


@given(st.lists(st.lists(parts, min_size=1, max_size=3).map("/".join), max_size=12))
@settings(max_examples=300, deadline=None)
def test_clashes_are_what_no_directory_could_hold(names: list[str]) -> None:
    files = Files(SourceFile(name.encode(), 0, 0) for name in names)
    twice = {name for name in names if names.count(name) > 1}
    directories = {name for name in names if any(other.startswith(name + "/") for other in names)}
    assert {path.decode() for path, _ in clashes(files, ())} == twice | directories


def test_any_number_of_files_of_one_path_are_named_once() -> None:
    files = [SourceFile(b"a", 1, 0)] * 20_000 + [SourceFile(b"b", 1, 0)]
    assert list(clashes(files, ())) == [(b"a", "there twice; unpack it, and archive the directory")]
