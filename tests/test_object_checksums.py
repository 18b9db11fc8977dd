"""What comes from a store is what was put there, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import CODECS, make_faces
from s3 import S3, Proxy, upload
from s3 import proxy as proxy
from s3 import s3 as s3
from s3 import s3_server as s3_server

from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.errors import StorageError, UsageError
from zippy_batch.run.pipeline import archive, restore, verify
from zippy_batch.stores import object_path
from zippy_batch.stores.object_path import ObjectPath, download, place, put_bytes, read_checked

EXACT = ArchiveOptions(device="cpu", exact="always")


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


class Answers:
    """A store with one object, which answers each request with the next of these."""

    def __init__(self, etag: str | None, *answers: bytes) -> None:
        self._said: dict[str, bytes] = {} if etag is None else {"ETag": etag.encode()}
        self._answers: Iterator[bytes] = iter(answers)
        self.asked = 0

    @contextmanager
    def open_input_stream(self, key: str) -> Iterator[Any]:
        self.asked += 1
        data = next(self._answers)
        yield SimpleNamespace(metadata=lambda: self._said, read=lambda: data)


def read(monkeypatch: pytest.MonkeyPatch, store: Answers, uri: str = "s3://bucket/x") -> bytes:
    monkeypatch.setattr(object_path, "_filesystem", lambda _: store)
    path = place(uri)
    assert isinstance(path, ObjectPath)
    return read_checked(path)[0]


def test_bytes_of_another_checksum_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Answers(f'"{md5(b"right").hex()}"', b"wrong", b"righ", b"right")
    assert read(monkeypatch, store) == b"right"
    assert store.asked == 3
    with pytest.raises(
        StorageError, match=r"s3://bucket/x: the bytes that came are not those of its checksum, 3 times"
    ):
        read(monkeypatch, Answers(f'"{md5(b"right").hex()}"', b"wrong", b"wrong", b"wrong"))


@pytest.mark.parametrize("part", [5 << 10, 8 << 10, 12 << 10, 15 << 10])
def test_objects_of_parts_have_the_checksum_of_their_checksums(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(object_path, "_MEBIBYTE", 1 << 10)
    data = bytes(range(256)) * 68
    digests = [md5(data[start : start + part]) for start in range(0, len(data), part)]
    etag = f'"{md5(b"".join(digests)).hex()}-{len(digests)}"'
    store = Answers(etag, data[:-1] + b"x", data)
    assert read(monkeypatch, store) == data
    assert store.asked == 2


def test_of_parts_of_odd_sizes_two_reads_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    etag = f'"{md5(md5(b"ab") + md5(b"cde")).hex()}-2"'
    store = Answers(etag, b"abcde", b"abcdX", b"abcde")
    assert read(monkeypatch, store) == b"abcde"
    assert store.asked == 3
    with pytest.raises(StorageError, match="not those of its checksum"):
        read(monkeypatch, Answers(etag, b"1", b"2", b"3"))


@pytest.mark.parametrize(
    ("etag", "uri"),
    [
        (None, "s3://bucket/x"),
        ('"CPDd3bZQ="', "gs://bucket/x"),
        ('"opaque"', "s3://bucket/x"),
        ("0" * 32, "s3://bucket/x?checksums=off"),
        ("0" * 32, "s3://bucket--use1-az4--x-s3/x"),
    ],
)
def test_an_etag_that_is_no_checksum_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, etag: str | None, uri: str
) -> None:
    store = Answers(etag, b"data")
    assert read(monkeypatch, store, uri) == b"data"
    assert store.asked == 1


@pytest.mark.parametrize(("flips", "is_archived"), [(1, True), (1000, False)])
def test_a_flipped_byte_on_the_way_is_never_archived(
    s3: S3, proxy: Proxy, tmp_path: Path, flips: int, is_archived: bool
) -> None:
    faces = make_faces(tmp_path / "faces")
    upload(faces, s3.at("faces"))
    proxy.flip, proxy.flips_left = b"not a picture", flips
    source = s3.uri("faces", proxy.host)
    if is_archived:
        archive(source, tmp_path / "out.parquet", EXACT, codecs=CODECS)
        assert proxy.flips_left == 0
        assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
        restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
        assert (tmp_path / "back" / "notes.txt").read_bytes() == b"not a picture"
        return
    with pytest.raises(StorageError, match=r"faces/notes\.txt: the bytes that came are not those of its checksum"):
        archive(source, tmp_path / "out.parquet", EXACT, codecs=CODECS)
    assert not (tmp_path / "out.parquet").exists()


def test_a_byte_flipped_in_a_download_is_noticed(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    put_bytes(b"x" * 5000 + b"marked", s3.at("part"))
    path = place(s3.uri("part", proxy.host))
    assert isinstance(path, ObjectPath)
    for flips in (1, 2):
        proxy.flip, proxy.flips_left = b"marked", flips
        download(path, tmp_path / "part")
        # what comes twice may be an object whose ETag is no checksum
        assert (tmp_path / "part").read_bytes().endswith(b"marked") is (flips == 1)


def test_checksums_are_off_or_not_named(s3: S3) -> None:
    path = place(s3.uri("x") + "&checksums=on")
    assert isinstance(path, ObjectPath)
    with pytest.raises(UsageError, match="checksums in the query"):
        path.exists()
    assert place(s3.uri("x") + "&checksums=off").exists() is False


def test_objects_of_every_way_to_write_them_are_read(s3: S3) -> None:
    import pyarrow.fs as pa_fs

    plain = pa_fs.S3FileSystem(scheme="http", region="us-east-1", endpoint_override=s3.host)
    contents: Mapping[str, bytes] = {"empty": b"", "small": b"x" * 100, "large": bytes(11 << 20)}
    for name, data in contents.items():
        for filesystem in (plain, s3.at(name).filesystem()):
            with filesystem.open_output_stream(s3.at(name).key) as stream:
                for start in range(0, len(data), 4 << 20):
                    stream.write(data[start : start + (4 << 20)])
            s3.requests.clear()
            assert read_checked(s3.at(name))[0] == data
            assert [method for method, _ in s3.requests].count("HEAD") == 1
