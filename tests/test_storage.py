from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from s3 import S3, Proxy, content, upload
from s3 import proxy as proxy
from s3 import s3 as s3
from s3 import s3_server as s3_server

from zippy_batch.errors import SourceError, StorageError, UsageError
from zippy_batch.sources.directory import SourceFile, list_files
from zippy_batch.sources.object_store import ObjectReader, list_objects, read_object
from zippy_batch.stores import object_path
from zippy_batch.stores.object_path import ObjectFile, ObjectPath, delete, download, place, put, put_bytes

SECRET = "s3://AKIA1:very%2Fsecret@bucket/a%20b/c?region=x&endpoint_override=http://inner:9000"


def test_paths_stay_paths() -> None:
    assert place("faces/a b") == Path("faces/a b")
    assert place(Path("/faces")) == Path("/faces")
    assert place("file:///srv/my%20faces") == Path("/srv/my faces")
    assert place("c:/faces") == Path("c:/faces")


def test_a_uri_is_taken_apart_and_says_no_secret() -> None:
    path = place(SECRET)
    assert isinstance(path, ObjectPath)
    assert (str(path), repr(path), path.name, str(path.parent)) == (
        "s3://bucket/a b/c",
        "s3://bucket/a b/c",
        "c",
        "s3://bucket/a b",
    )
    assert (path / "d.parquet").suffix == ".parquet"
    assert pickle.loads(pickle.dumps(path)) == path
    assert "secret" not in f"{path.store} {path!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3:///key", "names no object"),
        ("s3://bucket/a/../b", "names no object"),
        ("s3://bucket/a//b", "names no object"),
        ("nosuch://bucket/a", "unknown scheme nosuch://"),
        ("file://host/a", "three slashes"),
        ("", "a path is empty"),
    ],
)
def test_what_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place(text)


def test_a_uri_that_went_through_a_path_is_refused() -> None:
    with pytest.raises(UsageError, match="give a URI as text"):
        place(Path("s3://bucket/a"))


def test_an_unknown_query_is_refused_without_its_value() -> None:
    path = place("s3://bucket/a?pass=hidden")
    assert isinstance(path, ObjectPath)
    with pytest.raises(UsageError, match="unknown in the query of an s3:// URI: pass; it takes region, scheme"):
        path.exists()


def test_put_and_download_bring_the_same_bytes(s3: S3, tmp_path: Path) -> None:
    """Also of an object that S3 takes in several requests, whose tag is not its MD5."""
    for size_bytes in (0, 5, 13 << 20):
        (tmp_path / "a").write_bytes(os.urandom(size_bytes))
        put(tmp_path / "a", s3.at("attempts"), s3.at("x/a"))
        assert download(s3.at("x/a"), tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert set(content(s3.at("x"))) == {"a"}
    delete(s3.at("x/a"))
    delete(s3.at("x/a"))
    assert not s3.at("x/a").exists()


def test_an_upload_that_is_not_the_file_is_not_committed(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"whole")
    monkeypatch.setattr(object_path, "_upload", lambda local, path: put_bytes(b"whol", path))
    with pytest.raises(StorageError, match=r"not what was uploaded \(4 bytes of 5\)"):
        put(tmp_path / "a", s3.at("attempts"), s3.at("a"))
    monkeypatch.setattr(object_path, "_upload", lambda local, path: put_bytes(b"WHOLE", path))
    with pytest.raises(StorageError, match="not what was uploaded"):
        put(tmp_path / "a", s3.at("attempts"), s3.at("a"))
    assert not s3.at("a").exists()


def test_random_access_reads_as_a_file_does(s3: S3, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    put_bytes(data, s3.at("a"))
    with ObjectFile(s3.at("a")) as file:
        s3.requests.clear()
        for start, size_bytes in (
            (0, 4),
            (4, 60_000),
            (299_990, 20),
            (250_000, 50_000),
            (120_000, 100_000),
            (300_000, 1),
        ):
            file.seek(start)
            assert file.read(size_bytes) == data[start : start + size_bytes]
        assert len(s3.requests) <= 4
        s3.requests.clear()
        file.fetch([(1000, 2000), (3000, 70_000), (250_000, 250_100)])
        for start, stop in ((1000, 2000), (3000, 70_000), (250_000, 250_100)):
            file.seek(start)
            assert file.read(stop - start) == data[start:stop]
        assert len(s3.requests) == 2


def test_refusals_are_one_line_that_says_what_to_do(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    other = place(s3.uri("a", bucket="no-such-bucket"))
    assert isinstance(other, ObjectPath)
    with pytest.raises(UsageError, match="no such bucket; make it"):
        put(tmp_path / "a", other, other)
    nobody = place(s3.uri("a", host="127.0.0.1:9"))
    assert isinstance(nobody, ObjectPath)
    with pytest.raises(StorageError, match=r"cannot be reached.*check the endpoint") as found:
        nobody.exists()
    assert "\n" not in str(found.value)
    denied = OSError("When reading: AWS Error ACCESS_DENIED during GetObject operation: Denied (Request ID: 12)")
    text = str(object_path._refusal(nobody, denied))
    assert text.startswith("s3://faces-bucket/a: the store refuses access (AWS Error ACCESS_DENIED during GetObject")
    assert "Request ID" not in text


def test_a_broken_line_leaves_nothing_under_the_name(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(20 << 20))
    path = place(s3.uri("a", proxy.host))
    attempts = place(s3.uri("attempts", proxy.host))
    assert isinstance(path, ObjectPath)
    assert isinstance(attempts, ObjectPath)
    proxy.allowed_bytes = 12 << 20
    with pytest.raises(StorageError, match=r"s3://faces-bucket/attempts/a.*run the same command again"):
        put(tmp_path / "a", attempts, path)
    assert not s3.at("a").exists()
    proxy.allowed_bytes = None
    put(tmp_path / "a", attempts, path)
    assert s3.at("a").read_bytes() == (tmp_path / "a").read_bytes()


def test_objects_are_listed_in_the_order_of_files(s3: S3, tmp_path: Path) -> None:
    for name in ("b/1.jpg", "b.jpg", "b-/2.jpg", "a/é.jpg", "a/Z.jpg", "é/x"):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    upload(tmp_path / "faces", s3.at("in/faces"))
    put_bytes(b"not below it", s3.at("in/faces2"))
    s3.at("").filesystem().create_dir(s3.at("in/faces/none").key)
    assert list_objects(s3.at("in/faces")).empty_directories == 1
    there, here = list_objects(s3.at("in/faces")).files, list_files(tmp_path / "faces").files
    assert [(file.path, file.size_bytes) for file in there] == [(file.path, file.size_bytes) for file in here]
    assert all(abs(a.mtime_s - b.mtime_s) < 60 for a, b in zip(there, here, strict=True))
    reader = ObjectReader(s3.at("in/faces"), there)
    assert [reader(file) for file in reversed(there)] == [file.path for file in reversed(there)]


def test_one_object_is_no_source(s3: S3) -> None:
    put_bytes(b"a", s3.at("faces/a.jpg"))
    with pytest.raises(UsageError, match="is one object"):
        list_objects(s3.at("faces/a.jpg"))


def test_names_that_could_not_be_restored_are_refused(s3: S3) -> None:
    put_bytes(b"a", s3.at("faces/" + "x" * 256))
    with pytest.raises(
        UsageError, match=r"s3://faces-bucket/faces: one entry cannot be archived.*\n.*x: path of 256 bytes"
    ):
        list_objects(s3.at("faces"))


def test_an_object_that_changes_or_vanishes_is_named(s3: S3) -> None:
    root = s3.at("faces")
    put_bytes(b"data", root / "a")
    (file,) = list_objects(root).files
    assert read_object(root, file) == b"data"
    for changed in (SourceFile(b"a", 5, file.mtime_s), SourceFile(b"a", 4, file.mtime_s - 1)):
        with pytest.raises(SourceError, match="a: changed during the run: expected"):
            read_object(root, changed)
    delete(root / "a")
    with pytest.raises(SourceError, match="a: cannot be read: there is no object"):
        read_object(root, file)
    unreachable = place(s3.uri("faces", host="127.0.0.1:9"))
    assert isinstance(unreachable, ObjectPath)
    with pytest.raises(StorageError, match="cannot be reached"):
        read_object(unreachable, file)


def test_fsspec_knows_other_stores(tmp_path: Path) -> None:
    path = place("memory://shelf/a/b")
    assert isinstance(path, ObjectPath)
    (tmp_path / "a").write_bytes(b"data")
    put(tmp_path / "a", path.parent / "attempts", path)
    assert path.read_bytes() == b"data"
    assert str(path) == "memory://shelf/a/b"
    with ObjectFile(path) as file:
        assert file.read(2) == b"da"
