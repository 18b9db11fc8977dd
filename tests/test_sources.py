"""Every kind of source: archived, restored, verified; and what is hostile or would be lost refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import CODECS, files_of, make_faces
from holders import (
    REC_MAGIC,
    TIME_S,
    framed,
    image_record,
    images_column,
    member,
    write_parquet,
    write_rec,
    write_tar,
    write_zip,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.errors import SourceError, StagingMismatch, UsageError
from zippy_batch.run.pipeline import archive, restore, verify
from zippy_batch.run.plan import plan_archive
from zippy_batch.run.staging_local import open_local_staging
from zippy_batch.sources import Source, Wanted, list_source
from zippy_batch.sources.containers import UniqueNames
from zippy_batch.sources.directory import Listing

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, exact="always")
"""Whatever is archived comes back byte for byte."""

Write = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pictures and other files, by path."""
    found = files_of(make_faces(tmp_path_factory.mktemp("made") / "faces"))
    return {os.fsdecode(path): data for path, data in sorted(found.items())}


def listed(path: Path, **wanted: object) -> tuple[Source, Listing]:
    return list_source(path, Wanted(**wanted))  # type: ignore[arg-type]


def contents(path: Path, **wanted: object) -> dict[str, bytes]:
    """Everything that is read, by path, from a source that went through a pickle, as on its way to a worker."""
    here, listing = listed(path, **wanted)
    source = pickle.loads(pickle.dumps(here))
    read = source.reader(listing.files)
    names = [os.fsdecode(file.path) for file in listing.files]
    assert names == sorted(names, key=os.fsencode)
    # not in the order of the listing, and not once
    picked = random.Random(0).sample(listing.files, len(listing.files))
    found = {file.path: read(file) for file in [*picked, *picked[:3]]}
    return {os.fsdecode(path): found[path] for path in sorted(found)}


def labels(path: Path, **wanted: object) -> dict[str, str | None]:
    return {os.fsdecode(file.path): file.label for file in listed(path, **wanted)[1].files}


def refused(path: Path, *messages: str, **wanted: object) -> None:
    with pytest.raises((UsageError, SourceError)) as caught:
        listed(path, **wanted)
    for message in messages:
        assert message in str(caught.value)


def fails_by_name(path: Path) -> bool:
    """Or not at all."""
    try:
        contents(path)
    except (UsageError, SourceError) as error:
        return path.name in str(error)
    return True


def column(path: Path, name: str) -> dict[str, object]:
    table = pq.read_table(path, columns=["path", name])
    return dict(zip(table["path"].to_pylist(), table[name].to_pylist(), strict=True))


# ---- every kind ----


def as_list(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "some.txt").write_text("\n".join(f"./{name}" if i % 2 else name for i, name in enumerate(files)) + "\n\n")
    (path / "not-in-the-list.jpg").write_bytes(b"")
    return path / "some.txt"


def as_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_tar(path / "faces.tar", {f"./{name}": data for name, data in files.items()}, [member("./", type=b"5")])


def as_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(path / "faces.zip", files)


def as_stored_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(path / "faces.ZIP", files, zipfile.ZIP_STORED)


def as_parquet(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_parquet(path / "faces.parquet", {"image": images_column(files)})


KINDS = {"list": as_list, "tar": as_tar, "zip": as_zip, "stored zip": as_stored_zip, "parquet": as_parquet}


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest) -> Write:
    return KINDS[request.param]


def test_every_kind_is_archived_verified_and_restored(write: Write, faces: dict[str, bytes], tmp_path: Path) -> None:
    source = write(tmp_path, faces)
    report = archive(source, tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    assert report.total.images == len(faces)
    assert len(report.shards) == 3
    assert set(column(tmp_path / "out.parquet", "label").values()) == {None}
    checked = verify(tmp_path / "out.parquet", source, codecs=CODECS)
    assert (checked.exit_code, checked.missing, checked.extra, checked.differing) == (0, (), (), ())
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    assert files_of(tmp_path / "back") == {os.fsencode(name): data for name, data in faces.items()}


def test_every_kind_is_read_in_any_order(write: Write, faces: dict[str, bytes], tmp_path: Path) -> None:
    assert contents(write(tmp_path, faces)) == faces


def test_records_are_archived_verified_and_restored(faces: dict[str, bytes], tmp_path: Path) -> None:
    images = list(faces.values())
    records = [image_record(image, i // 3) for i, image in enumerate(images) if image]
    source = write_rec(tmp_path / "train.rec", [image_record(b"", [len(records) + 1, 99]), *records])
    report = archive(source, tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    assert report.run
    assert report.run.notes == (f"left out: 1 record of {source} without an image, as lists of identities",)
    assert report.run.notes[0] in "\n".join(report.lines())
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    restored = files_of(tmp_path / "back")
    assert [restored[name] for name in sorted(restored)] == [image for image in images if image]
    kept = [i for i, image in enumerate(images) if image]
    assert list(column(tmp_path / "out.parquet", "label").values()) == [str(i // 3) for i in kept]


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_a_member_without_a_name_is_refused_or_numbered(kind: str, tmp_path: Path) -> None:
    source = tmp_path / f"faces.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as made:
            made.writestr(zipfile.ZipInfo("x", (2023, 11, 14, 22, 13, 20)), b"data")
        data = source.read_bytes()
        # both headers without the name, and the directory where it then begins
        at = data.index(b"PK\1\2")
        local = data[:26] + bytes(2) + data[28:30] + data[31:at]
        entry = data[at : at + 28] + bytes(2) + data[at + 30 : at + 46]
        end = data[data.index(b"PK\5\6") :]
        source.write_bytes(local + entry + end[:12] + struct.pack("<II", len(entry), len(local)) + end[20:])
    elif kind == "tar":
        write_tar(source, {"": b"data"})
    else:
        write_parquet(source, {"image": images_column([("", b"data")])})
    if kind == "parquet":
        assert [file.path for file in list_source(source, Wanted())[1].files] == [b"00000000.bin"]
        return
    with pytest.raises(UsageError, match=r"one entry cannot be archived; remove or rename:\n  .*: empty path"):
        list_source(source, Wanted())


def test_without_exact_the_pictures_come_back_as_pictures(faces: dict[str, bytes], tmp_path: Path) -> None:
    source = write_tar(tmp_path / "faces.tar", {f"id_1/{name}": data for name, data in faces.items()})
    options = replace(OPTIONS, exact="never", labels="folders")
    archive(source, tmp_path / "out.parquet", options, codecs=CODECS)
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert set(table["codec"].to_pylist()) == {"latent", "raw"}
    assert set(table["label"].to_pylist()) == {"id_1", "sub"}


def test_an_archive_does_not_say_what_its_files_were_in(faces: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = as_zip(tmp_path / "a", faces)
    for name, data in faces.items():
        (tmp_path / "b" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes(data)
        os.utime(tmp_path / "b" / name, (TIME_S - 1, TIME_S - 1))
    archive(whole, tmp_path / "a.parquet", OPTIONS, codecs=CODECS)
    archive(tmp_path / "b", tmp_path / "b.parquet", OPTIONS, codecs=CODECS)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_container_that_changes_during_the_run_is_noticed(
    write: Write, faces: dict[str, bytes], tmp_path: Path
) -> None:
    path = write(tmp_path, faces)
    source, listing = listed(path)
    changed = path if source.containers else path.parent / "0.jpg"
    os.utime(changed, (1, 1))
    with pytest.raises(SourceError, match="changed during the run"):
        source.reader(listing.files)(listing.files[0])
    changed.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        source.reader(listing.files)(listing.files[0])


def test_the_plan_knows_what_it_was_made_of(faces: dict[str, bytes], tmp_path: Path) -> None:
    def fingerprint(path: Path, **wanted: object) -> str:
        return plan_archive(listed(path, **wanted)[1], OPTIONS, {}).fingerprint

    source = as_tar(tmp_path, faces)
    first = fingerprint(source)
    elsewhere = tmp_path / "elsewhere.tar"
    os.link(source, elsewhere)
    assert fingerprint(elsewhere) == first
    changed = {fingerprint(source, labels="folders")}
    os.utime(source, (1, 1))
    changed.add(fingerprint(source))
    write_tar(source, {"longer/than/before": b"", **faces})
    os.utime(source, (1, 1))
    changed.add(fingerprint(source))
    assert len({first, *changed}) == 4


def test_other_labels_are_another_run(faces: dict[str, bytes], tmp_path: Path) -> None:
    source = as_tar(tmp_path, {"a/x.jpg": b"1"})
    plan = plan_archive(listed(source)[1], OPTIONS, {})
    interrupted = open_local_staging(tmp_path / "out.parquet", plan.fingerprint, plan.facts, False)
    interrupted.__enter__().part(0).write_bytes(b"")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(StagingMismatch, match="labels: None then, folders now"):
        archive(source, tmp_path / "out.parquet", replace(OPTIONS, labels="folders"), codecs=CODECS)


def test_what_a_source_is_must_be_clear(tmp_path: Path) -> None:
    (tmp_path / "faces.dat").write_bytes(b"")
    (tmp_path / "faces.tar.gz").write_bytes(b"")
    refused(tmp_path / "nothing.tar", "there is no source")
    refused(tmp_path / "faces.dat", "neither a directory nor a file that ends in .txt, .tar", "--input")
    refused(tmp_path / "faces.tar.gz", "is compressed", "unpack it first")
    refused(tmp_path, "is a directory, and --input list is for", input="list")
    refused(tmp_path, "input must be one of auto, files", input="tarball")
    assert contents(write_tar(tmp_path / "x.dat", {"a": b"b"}), input="tar") == {"a": b"b"}


def test_a_source_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to archive"):
        archive(write_tar(tmp_path / "x.tar", {}), tmp_path / "out.parquet", OPTIONS, codecs=CODECS)


# ---- directories of containers ----


def test_a_directory_of_shards_keeps_their_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "val").mkdir(parents=True)
    write_tar(tmp_path / "in" / "train-001.tar", {"0.jpg": b"1", "0.cls": b"7"})
    write_tar(tmp_path / "in" / "train-000.tar", {"0.jpg": b"0"})
    write_tar(tmp_path / "in" / "val" / "0.TAR", {"sub/0.jpg": b"v"})
    assert contents(tmp_path / "in", input="tar") == {
        "train-000/0.jpg": b"0",
        "train-001/0.cls": b"7",
        "train-001/0.jpg": b"1",
        "val/0/sub/0.jpg": b"v",
    }
    assert labels(tmp_path / "in", input="tar")["train-001/0.jpg"] == "7"
    assert labels(tmp_path / "in", input="tar", labels="folders")["val/0/sub/0.jpg"] == "sub"
    assert labels(tmp_path / "in", input="tar", labels="folders")["train-000/0.jpg"] is None


def test_a_directory_is_a_directory_of_files_unless_said_otherwise(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "a.tar", {"0.jpg": b"0"}).read_bytes()
    assert contents(tmp_path) == {"a.tar": data}


def test_what_is_beside_shards_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"0"})
    (tmp_path / "README.md").write_bytes(b"")
    refused(tmp_path, "1 file without the suffix .tar (README.md)", "--leave-out", input="tar")
    _, listing = listed(tmp_path, input="tar", leave_out=True)
    assert [file.path for file in listing.files] == [b"a/0.jpg"]
    assert listing.notes == ("left out: 1 file without the suffix .tar: README.md",)


def test_what_spark_writes_beside_its_tables_is_left_out_and_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-0.parquet", {"image": images_column({"x.jpg": b"1"})})
    (tmp_path / "_SUCCESS").write_bytes(b"")
    (tmp_path / ".part-0.parquet.crc").write_bytes(b"")
    assert contents(tmp_path, input="parquet") == {"part-0/x.jpg": b"1"}
    assert listed(tmp_path, input="parquet")[1].notes == (
        "left out: 2 files without the suffix .parquet: .part-0.parquet.crc, _SUCCESS",
    )
    (tmp_path / "README.md").write_bytes(b"")
    refused(tmp_path, "3 files without the suffix .parquet", "--leave-out", input="parquet")


def test_an_index_belongs_to_its_records(tmp_path: Path) -> None:
    write_rec(tmp_path / "a.rec", [image_record(b"x", 1)])
    write_rec(tmp_path / "b.rec", [image_record(b"y", 2)])
    assert contents(tmp_path, input="recordio") == {"a/00000000.bin": b"x", "b/00000000.bin": b"y"}


def test_a_directory_of_parquet_files(tmp_path: Path) -> None:
    for i in range(2):
        write_parquet(tmp_path / f"train-{i}.parquet", {"image": images_column({"x.jpg": b"%d" % i})})
    assert contents(tmp_path, input="parquet") == {"train-0/x.jpg": b"0", "train-1/x.jpg": b"1"}


# ---- labels ----


def test_labels_of_a_directory_are_its_folders_when_asked(tmp_path: Path) -> None:
    for name in ("x", "id_1/a", "id_1/sub/b", "caf\udce9/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert set(labels(tmp_path).values()) == {None}
    assert labels(tmp_path, labels="folders") == {
        "x": None,
        "id_1/a": "id_1",
        "id_1/sub/b": "sub",
        "caf\udce9/c": "caf\\xe9",
    }


def test_labels_are_verified(faces: dict[str, bytes], tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", {"0.jpg": faces["0.jpg"], "0.cls": b"3"})
    archive(source, tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    assert column(tmp_path / "out.parquet", "label") == {"0.jpg": "3", "0.cls": None}
    write_tar(source, {"0.jpg": faces["0.jpg"], "0.cls": b"4"})
    found = verify(tmp_path / "out.parquet", source, codecs=CODECS)
    assert [finding.what for finding in found.differing] == [
        "the file's bytes are not those in the archive",
        "its label is '4', the archive says '3'",
    ]


def test_the_directory_that_a_tar_was_unpacked_to_is_as_good_as_the_tar(
    faces: dict[str, bytes], tmp_path: Path
) -> None:
    files = {"0.jpg": faces["0.jpg"], "0.cls": b"3"}
    archive(write_tar(tmp_path / "x.tar", files), tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    restore(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(device="cpu"), codecs=CODECS)
    assert verify(tmp_path / "out.parquet", tmp_path / "back", codecs=CODECS).exit_code == 0


def test_labels_are_none_where_none_are_wanted(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(b"x", 1)])
    assert labels(source) == {"00000000.bin": "1"}
    assert labels(source, labels="none") == {"00000000.bin": None}


# ---- lists ----


def test_a_list_names_files_in_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_bytes(b"")
    for name in ("a b.jpg", "ä.jpg"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    (tmp_path / "in" / "list.txt").write_bytes("\ufeffa b.jpg\r\n\r\nä.jpg\na b.jpg".encode())
    assert contents(tmp_path / "in" / "list.txt") == {"a b.jpg": b"a b.jpg", "ä.jpg": "ä.jpg".encode()}
    assert listed(tmp_path / "in" / "list.txt")[1].notes == ("archived once all the same: files of 1 repeated line",)


def test_lines_that_name_no_file_of_the_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to("../outside")
    (tmp_path / "in" / "list.txt").write_text("../outside\n/etc/passwd\nlink\nfolder\nmissing.jpg\n")
    refused(
        tmp_path / "in" / "list.txt",
        "5 entries",
        "../outside: line 1: '..' in the path",
        "/etc/passwd: line 2: absolute path",
        "link: line 3: link to something outside",
        "folder: line 4: a directory",
        "missing.jpg: line 5: No such file",
    )
    (tmp_path / "in" / "list.txt").write_bytes(b"\xff")
    refused(tmp_path / "in" / "list.txt", "not a list of paths, one a line in UTF-8")


def test_a_list_may_have_absolute_paths_below_its_directory(tmp_path: Path) -> None:
    home = tmp_path / "in"
    (home / "img").mkdir(parents=True)
    (tmp_path / "way").symlink_to("in")
    for i in range(4):
        (home / "img" / f"{i}.jpg").write_bytes(b"%d" % i)
    lines = [f"{home}/img/0.jpg", f"{tmp_path}/way/img/1.jpg", f"{home}//img/./2.jpg", "img//3.jpg", "./img/0.jpg"]
    (home / "list.txt").write_text("\n".join(lines))
    expected = {f"img/{i}.jpg": b"%d" % i for i in range(4)}
    assert contents(tmp_path / "way" / "list.txt") == expected
    assert listed(tmp_path / "way" / "list.txt")[1].notes == ("archived once all the same: files of 1 repeated line",)
    (home / "list.txt").write_text(f"{tmp_path}/other/0.jpg\n{home}-2/0.jpg\n{home}/../in/img/0.jpg\n{home}\n")
    refused(home / "list.txt", "4 entries", "absolute path; paths are relative to", "line 3: '..' in the path")


# ---- tar ----


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_formats_of_tar(tmp_path: Path, format: int) -> None:
    files = {
        "ä/" + "x" * 90 + ".jpg": b"1",
        "b": b"",
        "c/" * (40 if format == tarfile.USTAR_FORMAT else 300) + "d": b"2" * 700,
    }
    assert contents(write_tar(tmp_path / "x.tar", files, format=format)) == files


def test_names_in_a_tar_that_are_not_utf8(tmp_path: Path) -> None:
    assert contents(write_tar(tmp_path / "x.tar", {"caf\udce9.jpg": b"1"}, format=tarfile.GNU_FORMAT)) == {
        "caf\udce9.jpg": b"1"
    }


def test_links_in_a_tar_are_followed_as_in_a_directory(tmp_path: Path) -> None:
    links = [
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="./a/x.jpg", mtime=5),
        member("a/soft.jpg", type=tarfile.SYMTYPE, linkname="x.jpg"),
        member("b/soft.jpg", type=tarfile.SYMTYPE, linkname="../a/soft.jpg"),
    ]
    source = write_tar(tmp_path / "x.tar", {"a/x.jpg": b"1"}, links)
    assert contents(source) == dict.fromkeys(["a/soft.jpg", "a/x.jpg", "b/soft.jpg", "hard.jpg"], b"1")
    assert {file.path: file.mtime_s for file in listed(source)[1].files}[b"hard.jpg"] == 5


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "missing", "folder", "loop"])
def test_links_out_of_a_tar_are_refused(tmp_path: Path, target: str) -> None:
    others = [member("folder", type=tarfile.DIRTYPE), member("loop", type=tarfile.SYMTYPE, linkname=target)]
    refused(write_tar(tmp_path / "x.tar", {"folder/x": b""}, others), "one entry", "loop: link to something")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../x.jpg", "'..' in the path"),
        ("/etc/passwd", "absolute path"),
        ("a//x", "empty or '.' part"),
    ],
)
def test_paths_that_leave_are_refused(tmp_path: Path, name: str, why: str) -> None:
    refused(write_tar(tmp_path / "x.tar", {"a.jpg": b"", name: b""}), "one entry", f"{name}: {why}")
    refused(write_zip(tmp_path / "x.zip", {"a.jpg": b"", name: b""}), "one entry", f"{name}: {why}")


def test_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    others = [member("null", type=tarfile.CHRTYPE), member("pipe", type=tarfile.FIFOTYPE), member("odd", type=b"Z")]
    refused(write_tar(tmp_path / "x.tar", {"a": b""}, others), "3 entries", "null: neither a file", "odd: neither")


def test_members_of_one_name_are_refused(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", {"a.jpg": b"1"}, [member("./a.jpg")])
    refused(source, "a.jpg: there twice, in x.tar at 512 and x.tar at 1536")
    links = [member("b.jpg", type=tarfile.SYMTYPE, linkname="a.jpg")] * 2
    refused(write_tar(tmp_path / "x.tar", {"a.jpg": b"1"}, links), "b.jpg: there twice, as a link")
    refused(write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2"}, links[:1]), "b.jpg: there twice")


def test_a_file_that_is_a_directory_too_is_refused(tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "x.tar", {"a": b"", "a/b": b""}), "a: a file, and a directory of other files")


def test_large_members_and_odd_times_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zippy_batch.sources.containers.MAX_FILE_BYTES", 10)
    files = {"a": bytes(11), "b": bytes(10)}
    refused(write_tar(tmp_path / "x.tar", files), "one entry", "a: 11 bytes, over the limit")
    refused(write_zip(tmp_path / "x.zip", files), "one entry", "a: 11 bytes, over the limit")
    refused(write_tar(tmp_path / "x.tar", {}, [member("c", mtime=1 << 40)]), "c: 1099511627776 s since 1970 is no time")


def test_names_that_no_directory_holds_are_refused(tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "x.tar", {"a" * 256: b""}), "path of 256 bytes with a name of 256")
    refused(write_tar(tmp_path / "x.tar", {"a/" * 2047 + "bc": b""}), "path of 4096 bytes with a name of 2")
    refused(write_zip(tmp_path / "x.zip", {"a" * 256: b""}), "path of 256 bytes")


def test_names_that_only_windows_refuses_are_taken(tmp_path: Path) -> None:
    files = dict.fromkeys(["\\a.jpg", "C:\\x.jpg", "a/..\\x", "aux.jpg", "con", "nul"], b"1")
    assert contents(write_tar(tmp_path / "x.tar", files)) == files


def test_empty_directories_are_counted(tmp_path: Path) -> None:
    others = [member(name, type=tarfile.DIRTYPE) for name in (".", "full", "none", "nested", "nested/none")]
    assert listed(write_tar(tmp_path / "x.tar", {"full/x": b""}, others))[1].empty_directories == 2
    assert listed(write_zip(tmp_path / "x.zip", {"full/x": b"", "none/": b""}))[1].empty_directories == 1


def test_classes_are_those_of_their_own_samples(tmp_path: Path) -> None:
    names = [
        "a/0.JPG",
        "a/0.d/x.jpg",
        "a/0.d/x.y.png",
        "a/0.jpg",
        "a/0.z.jpg",
        "a/00.jpg",
        "a/0",
        "b/0.jpg",
        "a/0-1.jpg",
    ]
    files = dict.fromkeys(names, b"x") | {"a/0.cls": b"7", "a/0.d/x.cls": b"8", "c/0.cls": b"9"}
    found = {name: label for name, label in labels(write_tar(tmp_path / "x.tar", files)).items() if label}
    assert found == {"a/0.JPG": "7", "a/0.jpg": "7", "a/0.z.jpg": "7", "a/0.d/x.jpg": "8", "a/0.d/x.y.png": "8"}
    assert labels(write_tar(tmp_path / "x.tar", files), exclude=("*.cls",))["a/0.jpg"] == "7"


def test_classes_of_any_case_length_and_encoding(tmp_path: Path) -> None:
    files = {f"{i}.jpg": b"x" for i in range(6)}
    long = "ä" * 30_000
    files |= {"0.CLS": b"1", "1.Cls": "\ufeff2".encode(), "2.cls": "3".encode("utf-16"), "3.cls": long.encode()}
    source = write_tar(tmp_path / "x.tar", files)
    assert {k: v for k, v in labels(source).items() if v} == {"0.jpg": "1", "1.jpg": "2", "2.jpg": "3", "3.jpg": long}
    source = write_tar(tmp_path / "x.tar", {**files, "4.cls": "名".encode("cp932"), "5.cls": b"x" * 70_000})
    assert {k: v for k, v in labels(source).items() if v} == {"0.jpg": "1", "1.jpg": "2", "2.jpg": "3", "3.jpg": long}
    assert listed(source)[1].notes == (
        f"no label: 2 members of {source} that should be one by the suffix .cls, over 65536 bytes or neither in UTF-8 "
        "nor in what --encoding says: 4.cls, ...",
    )
    assert labels(source, encoding="cp932")["4.jpg"] == "名"


def test_classes_of_a_webdataset_become_labels(tmp_path: Path) -> None:
    files = {"a/0.cls": b" 17\n", "a/0.jpg": b"x", "a/0.seg.png": b"y", "a/0.json": b"{}", "b/0.jpg": b"z"}
    files |= {"a/1.jpg": b"x", "a/1.cls": b"\xff", "2.jpg": b"", "2.cls": b""}
    source = write_tar(tmp_path / "x.tar", {f"./{name}": data for name, data in files.items()})
    assert contents(source) == files
    assert {name: label for name, label in labels(source).items() if label} == {"a/0.jpg": "17", "a/0.seg.png": "17"}
    assert set(labels(source, labels="none").values()) == {None}


@pytest.mark.parametrize("cut", [1, 512, 1300, 2200, 2570])
def test_a_truncated_tar_is_an_error_that_says_where(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1", "b": b"2" * 700})
    path.write_bytes(path.read_bytes()[:cut])
    refused(path, "x.tar is truncated or damaged at byte", "bring it back")


@pytest.mark.parametrize("cut", [0, 513, 1024, 2236, 2400, 2560])
def test_a_tar_without_its_end_is_taken_and_said(tmp_path: Path, cut: int) -> None:
    files = {"a": b"1", "b": b"2" * 700}
    path = write_tar(tmp_path / "x.tar", files)
    path.write_bytes(path.read_bytes()[:cut])
    assert contents(path) == {name: files[name] for name in list(files)[: 0 if cut == 0 else 1 if cut < 2000 else 2]}
    assert listed(path)[1].notes == (
        f"{path} has no end, which is two blocks of zeros; it may have been cut off between two members",
    )


def test_one_block_of_zeros_is_an_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1"})
    path.write_bytes(path.read_bytes()[: 1024 + 512])
    assert contents(path) == {"a": b"1"}
    assert listed(path)[1].notes == ()


@pytest.mark.parametrize("at", [0, 1024, 1024 + 150])
def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path, at: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1", "b": b"2"})
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    refused(path, f"x.tar is truncated or damaged at byte {at // 512 * 512}")


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    one, other = (write_tar(tmp_path / name, {name: b""}).read_bytes() for name in ("1.tar", "2.tar"))
    (tmp_path / "x.tar").write_bytes(one + other)
    refused(tmp_path / "x.tar", "goes on after its end at byte 512", "--ignore-zeros")


def test_compressed_tars_are_refused_whatever_their_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a": b"1"})
    path.write_bytes(gzip.compress(path.read_bytes()))
    refused(path, "x.tar is compressed", "gunzip")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [1 << 33, (1 << 60), 1 << 24])
def test_a_header_of_a_tar_cannot_take_all_memory(tmp_path: Path, kind: bytes, size: int) -> None:
    header = member("x", size, type=kind).tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(1 << 34)
    tracemalloc.start()
    refused(path, "x.tar is truncated or damaged at byte")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 23


def test_a_size_below_zero_does_not_go_backwards(tmp_path: Path) -> None:
    header = bytearray(member("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    refused(tmp_path / "x.tar", "truncated or damaged at byte 0")


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3000))
def test_no_bytes_make_listing_a_tar_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, new: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    write_tar(path, {"a": b"1", "b" * 150: b"2" * 600}, [member("c", type=tarfile.SYMTYPE, linkname="a")])
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)
    assert fails_by_name(path)


# ---- zip ----


def test_times_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("dos", (2001, 9, 9, 1, 46, 40)), b"")
        unix = zipfile.ZipInfo("unix")
        unix.extra = struct.pack("<HHH", 1, 2, 0) + struct.pack("<HHBi", 0x5455, 5, 1, -7)
        archive.writestr(unix, b"")
        archive.writestr(zipfile.ZipInfo("none", (1980, 0, 0, 0, 0, 0)), b"")
    times = {file.path: file.mtime_s for file in listed(tmp_path / "x.zip")[1].files}
    assert times == {b"dos": 1_000_000_000, b"unix": -7, b"none": 315_532_800}


def test_names_in_a_zip(tmp_path: Path) -> None:
    files = {"ä/b.jpg": b"1", "plain": b"2"}
    assert contents(write_zip(tmp_path / "x.zip", files)) == files
    # without the flag of UTF-8, as some writers leave it out; and in the code page of MS-DOS
    data = (tmp_path / "x.zip").read_bytes().replace(b"\0\x08\x08\0\0\0", b"\0\0\x08\0\0\0").replace(b"\0\x08", b"\0\0")
    for old in ("ä".encode(), b"\x84_"):
        write_zip(tmp_path / "y.zip", {"??/b.jpg": b"1"})
        data = (tmp_path / "y.zip").read_bytes().replace(b"??", old)
        (tmp_path / "y.zip").write_bytes(data)
        assert list(contents(tmp_path / "y.zip")) == [
            "ä/b.jpg" if len(old.decode("cp437")) and old[0] == 0xC3 else "ä_/b.jpg"
        ]


def unix_member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def test_links_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/x.jpg", b"1")
        archive.writestr(unix_member("soft.jpg", 0o120777), "a/x.jpg")
    assert contents(tmp_path / "x.zip") == {"a/x.jpg": b"1", "soft.jpg": b"1"}
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr(unix_member("out", 0o120777), "../../etc/passwd")
        archive.writestr(unix_member("pipe", 0o010644), "")
    refused(tmp_path / "x.zip", "2 entries", "out: link to something that is no file in it", "pipe: neither a file")


def rewritten(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_encrypted_and_foreign_members_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", {"a": b"1"}, zipfile.ZIP_LZMA)
    refused(tmp_path / "x.zip", "a: compressed by method 14")
    path = write_zip(tmp_path / "y.zip", {"a": b"1"})
    central = b"PK\1\2\x14\3\x14\0"
    rewritten(path, central + b"\0\0", central + b"\1\0")
    refused(path, "a: encrypted")


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": bytes(100)})
    with zipfile.ZipFile(path) as archive:
        stored = struct.pack("<II", archive.infolist()[0].compress_size, 100)
    rewritten(path, stored, stored[:4] + struct.pack("<I", 1 << 29))
    refused(path, "a: 536870912 bytes, which cannot be in")


def test_a_member_never_becomes_more_than_it_declares(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": bytes(1 << 24)})
    with zipfile.ZipFile(path) as archive:
        stored = struct.pack("<II", archive.infolist()[0].compress_size, 1 << 24)
    rewritten(path, stored, stored[:4] + struct.pack("<I", 1000))
    source, listing = listed(path)
    tracemalloc.start()
    with pytest.raises(SourceError, match="is not the 1000 bytes of its checksum"):
        source.reader(listing.files)(listing.files[0])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"1" * 50, "b": b"2" * 50}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        second = struct.pack("<I", archive.getinfo("b").header_offset) + b"b"
    refused(rewritten(path, second, bytes(4) + b"b"), "b: overlaps another member")


def zip_of(path: Path, names: list[bytes], system: int = 0, extra: bytes = b"") -> Path:
    """Names as they are, whatever they are in."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo("ABCD"[i] * len(name))
            info.create_system, info.extra = system, extra
            archive.writestr(info, b"" if name.endswith((b"/", b"\\")) else b"%d" % i)
    data = path.read_bytes()
    for i, name in enumerate(names):
        data = data.replace(b"ABCD"[i : i + 1] * len(name), name)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("system", [0, 6, 10, 14])
def test_backslashes_of_windows_are_folders(tmp_path: Path, system: int) -> None:
    source = zip_of(
        tmp_path / "x.zip", [b"anna\\000.jpg", b"anna\\sub/1.jpg", b"none-at-all\\", b".\\bob\\333.jpg"], system
    )
    assert list(contents(source)) == ["anna/000.jpg", "anna/sub/1.jpg", "bob/333.jpg"]
    assert labels(source, labels="folders")["anna/000.jpg"] == "anna"
    assert listed(source)[1].empty_directories == 1
    refused(zip_of(tmp_path / "x.zip", [b"..\\evil-file.jpg"], system), "'..' in the path")


def test_backslashes_of_unix_are_part_of_a_name(tmp_path: Path) -> None:
    assert list(contents(zip_of(tmp_path / "x.zip", [b"anna\\000.jpg"], system=3))) == ["anna\\000.jpg"]


@pytest.mark.parametrize("encoding", ["cp932", "gbk", "big5", "cp949"])
def test_names_in_a_code_page(tmp_path: Path, encoding: str) -> None:
    name = "人物.jpg"
    source = zip_of(tmp_path / "x.zip", [name.encode(encoding)])
    assert list(contents(source, encoding=encoding)) == [name]
    guess = name.encode(encoding).decode("cp437")
    assert list(contents(source)) == [guess]
    (note,) = listed(source)[1].notes
    assert note == (
        f"names taken for code page 437, as {source} does not say what they are in: 1, such as {guess}; --encoding "
        "says another one"
    )
    assert listed(source, encoding=encoding)[1].notes == ()
    refused(source, "a name that is not in ascii; --encoding says which code page it is in", encoding="ascii")
    refused(source, f"encoding '{encoding}-x' is none that Python knows", encoding=f"{encoding}-x")
    refused(source, "encoding 'rot13' is none", encoding="rot13")


def test_a_code_page_is_for_names_that_are_not_said_to_be_unicode(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "x.zip", {"äß.jpg": b"1"})
    assert list(contents(source, encoding="cp932")) == ["äß.jpg"]
    stored, name = "人.jpg".encode("gbk"), "人.jpg".encode()
    field = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(stored)) + name
    assert list(contents(zip_of(tmp_path / "x.zip", [stored], extra=field))) == ["人.jpg"]
    assert list(contents(zip_of(tmp_path / "x.zip", [b"renamed"], extra=field))) == ["renamed"]


def test_an_empty_zip_is_whole(tmp_path: Path) -> None:
    empty = write_zip(tmp_path / "part-1.zip", {})
    assert contents(empty) == {}
    write_zip(tmp_path / "part-0.zip", {"a.jpg": b"1"})
    assert contents(tmp_path, input="zip") == {"part-0/a.jpg": b"1"}
    with pytest.raises(UsageError, match="nothing to archive"):
        archive(empty, tmp_path / "out.parquet", OPTIONS, codecs=CODECS)


def test_zips_of_shared_cases(shared: Path) -> None:
    assert list(contents(shared / "cases" / "zip" / "backslash.zip")) == ["anna/0.jpg", "anna/1.jpg"]
    assert contents(shared / "cases" / "zip" / "part-1.zip") == {}


def test_a_damaged_or_truncated_zip_says_where(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"1" * 50}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1" * 50, b"1" * 49 + b"2"))
    with pytest.raises(SourceError, match=r"x\.zip is truncated or damaged at byte 0: a is not the 50 bytes"):
        contents(path)
    path.write_bytes(data[:60])
    refused(path, "x.zip is no zip file, or truncated or damaged", "index is at its end")


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(0, 500))
def test_no_bytes_make_a_zip_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, new: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    write_zip(path, {"a": b"1" * 40, "b" * 50: b"2"})
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)
    assert fails_by_name(path)


# ---- RecordIO ----

JPEG = b"\xff\xd8\xff\xe0 as far as the first bytes go"


def test_records_are_named_by_their_number_and_format(tmp_path: Path) -> None:
    images = [b"", JPEG, b"\x89PNG\r\n\x1a\n", b"else"]
    source = write_rec(tmp_path / "x.rec", [image_record(image, [3, 4] if not image else 1) for image in images])
    assert contents(source) == {"00000001.jpg": JPEG, "00000002.png": images[2], "00000003.bin": b"else"}
    assert {file.mtime_s for file in listed(source)[1].files} == {int(source.stat().st_mtime)}


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (0, "0"),
        (85741, "85741"),
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        ([7], "7"),
        ([1, 0.25], "[1, 0.25]"),
        (1e10, "10000000000"),
    ],
)
def test_labels_of_records(tmp_path: Path, label: float | list[float], text: str) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG, label)])
    assert labels(source) == {"00000000.jpg": text}
    assert contents(source) == {"00000000.jpg": JPEG}


@pytest.mark.parametrize("image", [REC_MAGIC, REC_MAGIC * 3, b"1234" + REC_MAGIC + b"5", b"123" + REC_MAGIC])
def test_records_in_parts_come_back_whole(tmp_path: Path, image: bytes) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(image, 1), image_record(JPEG, 2)])
    assert contents(source) == {"00000000.bin": image, "00000001.jpg": JPEG}


def test_a_magic_in_the_header_of_an_image(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG, [1, 2], id=0xCED7230A)])
    assert contents(source) == {"00000000.jpg": JPEG}
    assert labels(source) == {"00000000.jpg": "[1, 2]"}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\1\1", REC_MAGIC)), min_size=1, max_size=5))
def test_any_records_come_back(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> None:
    source = write_rec(tmp_path_factory.getbasetemp() / "any.rec", [image_record(b"." + i, 1) for i in images])
    assert list(contents(source).values()) == [b"." + image for image in images]


@pytest.mark.parametrize("cut", [1, 4, 9, 61, 62])
def test_truncated_records_are_an_error_that_says_where(tmp_path: Path, cut: int) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(b"12345", 1)] * 2, index=False)
    assert source.stat().st_size == 80
    source.write_bytes(source.read_bytes()[:-cut] if cut < 40 else source.read_bytes()[:cut])
    refused(source, "x.rec is truncated or damaged at byte 40")


def test_records_that_an_index_misses_are_an_error(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(b"1234", 1)] * 3)
    source.write_bytes(source.read_bytes()[:36])
    refused(source, "x.rec is truncated or damaged at byte 36", "its .idx says that a record begins there")
    write_rec(source, [image_record(b"1234", 1)] * 3)
    source.with_suffix(".idx").write_text("0\t0\n1\t40\n")
    refused(source, "at byte 40", "its .idx says")
    source.with_suffix(".idx").write_text("0\t0\n2\t72\n")
    assert len(contents(source)) == 3
    source.with_suffix(".idx").write_text("0\tx\n")
    refused(source, "x.idx, line 1: expected a key and an offset")


def test_records_are_named_by_their_keys(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG + b"%d" % i, i) for i in range(4)])
    offsets = [line.split()[1] for line in source.with_suffix(".idx").read_text().splitlines()]
    keys = ["30", "0", "name", "007"]
    lines = [f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True)]
    source.with_suffix(".idx").write_text("".join(lines[::-1]))
    names = ["00000030.jpg", "00000000.jpg", "name.jpg", "00000007.jpg"]
    assert contents(source) == {name: JPEG + b"%d" % i for i, name in sorted(enumerate(names), key=lambda x: x[1])}
    assert [labels(source)[name] for name in names] == ["0", "1", "2", "3"]
    source.with_suffix(".idx").write_text("".join(lines[1:]))
    assert contents(source)["record-00000000.jpg"] == JPEG + b"0"
    assert listed(source)[1].notes == (f"named by number: 1 record of {source} without a key in its .idx",)
    source.with_suffix(".idx").write_text("".join([lines[0], lines[1].replace("0", "30", 1)]))
    refused(source, "00000030.jpg: there twice, in x.rec")


def test_names_and_labels_of_a_list_beside_the_records(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG + b"%d" % i, 9, id=i) for i in range(5)])
    lines = [
        "4\t1.000000\tbob/4.jpg",
        "0\t0.5\t/data/ann/0.jpg",
        "2\t1\t-2.5\tbob/4.jpg",
        "3\t7\t../x.jpg",
        "9\t0\tz.jpg",
    ]
    source.with_suffix(".lst").write_text("\n".join(lines))
    for index in (True, False):
        if not index:
            source.with_suffix(".idx").unlink()
        assert {name: data[-1:] for name, data in contents(source).items()} == {
            "00000001.jpg": b"1",
            "00000003.jpg": b"3",
            "bob/4.00000004.jpg": b"4",
            "bob/4.jpg": b"2",
            "data/ann/0.jpg": b"0",
        }
        assert labels(source) == {
            "00000001.jpg": "9",
            "00000003.jpg": "7",
            "bob/4.00000004.jpg": "1",
            "bob/4.jpg": "[1, -2.5]",
            "data/ann/0.jpg": "0.5",
        }
        assert listed(source)[1].notes == (
            f"named by key: 2 records of {source} with a path in its .lst that no file can have, or that an earlier "
            "one has",
            f"without an image of {source}: 1 line of its .lst",
        )


@pytest.mark.parametrize("line", ["1\ta.jpg\t0", "x\t1\ta.jpg", "1 0 a.jpg", "1\tnan\ta.jpg"])
def test_a_list_of_another_kind_is_an_error(tmp_path: Path, line: str) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG, 1)])
    source.with_suffix(".lst").write_text(f"0\t1\ta.jpg\n{line}\n")
    refused(source, "x.lst, line 2: expected a key, numbers and a path, with tabs between them; take the file away")


def test_a_list_keeps_the_digits_of_its_numbers(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG + b"%d" % i, 9, id=i) for i in range(3)])
    lines = ("\ufeff0\t16777217\ta.jpg", "1\t1e39\tb.jpg", "2\t0.1\t1.50\tc.jpg")
    source.with_suffix(".lst").write_bytes("\r\n".join(lines).encode())
    assert labels(source) == {"a.jpg": "16777217", "b.jpg": "1" + "0" * 39, "c.jpg": "[0.1, 1.5]"}


def test_a_path_of_a_list_that_is_the_name_of_another_record(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG + b"%d" % i, 9, id=i) for i in range(2)])
    source.with_suffix(".lst").write_text("0\t1\t00000001.jpg\n")
    assert {name: data[-1:] for name, data in contents(source).items()} == {
        "00000001.jpg": b"0",
        "00000001.00000001.jpg": b"1",
    }


def test_a_key_that_no_number_holds_is_an_error(tmp_path: Path) -> None:
    source = write_rec(tmp_path / "x.rec", [image_record(JPEG, 1)])
    source.with_suffix(".lst").write_text(f"{10**25}\t1\ta.jpg\n")
    refused(source, "x.lst, line 1: expected a key, numbers and a path")


def test_made_up_names_are_made_up_again_where_they_are_taken() -> None:
    names = UniqueNames()
    given = (b"a.00000002.jpg", b"a.jpg", b"a.jpg")
    assert [names.name(name, i, b"jpg") for i, name in enumerate(given)] == [*given[:2], b"a.00000002.00000002.jpg"]


def test_records_of_shared_cases(shared: Path) -> None:
    source = shared / "cases" / "recordio-keys" / "train.rec"
    assert labels(source) == {"ann/0.jpg": "0", "ann/1.jpg": "0", "bob/2.jpg": "1", "bob/3.jpg": "1"}


@pytest.mark.parametrize("flag", [1, 2, 3, 5])
def test_a_record_out_of_order_is_damage(tmp_path: Path, flag: int) -> None:
    path = tmp_path / "x.rec"
    path.write_bytes(framed(image_record(JPEG, 1)) + REC_MAGIC + struct.pack("<I", flag << 29 | 4) + b"1234")
    refused(path, "x.rec is truncated or damaged at byte")


def test_records_that_are_no_images_are_refused(tmp_path: Path) -> None:
    refused(write_rec(tmp_path / "x.rec", [b"short"]), "00000000: the record at byte 0 has 5 bytes, too few")


def test_a_count_in_a_record_cannot_take_all_memory(tmp_path: Path) -> None:
    for count in (2, 1 << 20, 0xFFFFFFFF):
        record = struct.pack("<IfQQ", count, 0, 0, 0) + b"1234"
        refused(write_rec(tmp_path / "x.rec", [record]), f"has a label of {count} numbers")
    (tmp_path / "y.rec").write_bytes(REC_MAGIC + struct.pack("<I", 0x1FFFFFFF) + bytes(100))
    refused(tmp_path / "y.rec", "a record of 536870911 bytes begins there")


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(0, 200))
def test_no_bytes_make_records_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, new: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.rec"
    data = bytearray(
        b"".join(map(framed, [image_record(JPEG, 1), image_record(b"", [1, 2]), image_record(REC_MAGIC, 3)]))
    )
    data[at : at + len(new)] = new
    path.write_bytes(data)
    assert fails_by_name(path)


# ---- Parquet ----


def test_a_plain_column_of_images(tmp_path: Path) -> None:
    for name, kind in (("image", pa.binary()), ("img", pa.large_binary())):
        columns = {name: pa.array([JPEG, b"x", b""] * 50, kind), "label": pa.array(range(150))}
        source = write_parquet(tmp_path / "x.parquet", columns, rows_per_group=70)
        found = contents(source)
        assert list(found.values()) == [JPEG, b"x", b""] * 50
        assert list(found)[:3] == ["00000000.jpg", "00000001.bin", "00000002.bin"]
        assert listed(source)[1].notes == ()
        assert list(labels(source).values()) == [str(i) for i in range(150)]


def test_labels_of_a_column(tmp_path: Path) -> None:
    image = images_column({"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for column, metadata, wanted in (
        (pa.array(["x", None, ""]), {}, ["x", None, ""]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), {}, ["x", "y", "x"]),
        (pa.array([1, None, -1], pa.int8()), {}, ["1", None, "-1"]),
        (pa.array([1, 0, 2]), {"huggingface": json.dumps(features)}, ["dog", "cat", "2"]),
        (pa.array([1, 0, 2]), {"huggingface": "{nonsense"}, ["1", "0", "2"]),
        (pa.array([1, 0, 2]), {"huggingface": json.dumps(features).replace("cat", "\\ud800")}, ["1", "0", "2"]),
    ):
        source = write_parquet(tmp_path / "x.parquet", {"image": image, "label": column}, 2, **metadata)
        assert list(labels(source).values()) == wanted
        assert set(labels(source, labels="none").values()) == {None}
        assert listed(source, labels="none")[1].notes == (f"columns of {source} that are left out: label",)


def test_columns_that_have_no_place_are_refused_or_left_out(tmp_path: Path) -> None:
    image = images_column({"a.jpg": b"1"})
    source = write_parquet(tmp_path / "x.parquet", {"age": [3], "image": image, "label": [[0.5]]})
    refused(source, "has columns that an archive has no place for: age, label", "--leave-out")
    _, listing = listed(source, leave_out=True)
    assert listing.notes == (f"columns of {source} that are left out: age, label",)
    with pytest.raises(UsageError, match="no place for"):
        archive(source, tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    archive(source, tmp_path / "out.parquet", replace(OPTIONS, leave_out=True), codecs=CODECS)
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0


def test_rows_without_an_image_are_refused_or_left_out(tmp_path: Path) -> None:
    image = images_column([("a.jpg", b"1"), ("elsewhere.jpg", None), (None, None), ("b.jpg", b"2")])
    source = write_parquet(tmp_path / "x.parquet", {"image": image}, 2)
    refused(
        source, "2 entries", "row 1 holds no image, only the path elsewhere.jpg", "row 2 holds no image; --leave-out"
    )
    assert contents(source, leave_out=True) == {"a.jpg": b"1", "b.jpg": b"2"}
    assert listed(source, leave_out=True)[1].notes == (f"left out: 2 rows of {source} without an image",)


def test_paths_that_cannot_be_are_made_of_the_row(tmp_path: Path) -> None:
    paths = ["a/x.jpg", "a/x.jpg", None, "../x.jpg", "/tmp/x.jpg", "", "noext", "noext"]
    source = write_parquet(
        tmp_path / "x.parquet", {"image": images_column([(p, b"%d" % i) for i, p in enumerate(paths)])}
    )
    assert contents(source) == {
        "a/x.jpg": b"0",
        "a/x.00000001.jpg": b"1",
        "00000002.bin": b"2",
        "00000003.bin": b"3",
        "tmp/x.jpg": b"4",
        "00000005.bin": b"5",
        "noext": b"6",
        "noext.00000007": b"7",
    }
    assert listed(source)[1].notes == (
        f"named by number: 5 rows of {source} without a path that a file can have, or with one that an earlier row has",
    )


def test_made_up_paths_that_other_rows_have(tmp_path: Path) -> None:
    image = images_column([(None, b"1"), ("00000000.bin", b"2")])
    source = write_parquet(tmp_path / "x.parquet", {"image": image})
    assert contents(source) == {"00000000.bin": b"1", "00000000.00000001.bin": b"2"}
    image = images_column([("00000001.bin", b"1"), (None, b"2")])
    write_parquet(tmp_path / "x.parquet", {"image": image})
    assert contents(source) == {"00000001.bin": b"1", "00000001.00000001.bin": b"2"}


def test_tables_without_images_are_refused(tmp_path: Path, faces: dict[str, bytes]) -> None:
    write_parquet(tmp_path / "x.parquet", {"a": [1]})
    refused(tmp_path / "x.parquet", "has no column image", "a: int64")
    write_parquet(tmp_path / "x.parquet", {"a": [b"1"], "b": [b"1"]})
    refused(tmp_path / "x.parquet", "has no column image, nor one column alone")
    archive(as_tar(tmp_path, faces), tmp_path / "out.parquet", OPTIONS, codecs=CODECS)
    costs = ("is an archive of zippy-batch already", "about 1 dB more is lost", "measured against the restored files")
    refused(tmp_path / "out.parquet", *costs)
    archive(as_tar(tmp_path, faces), tmp_path / "parts", OPTIONS, codecs=CODECS)
    refused(tmp_path / "parts", *costs)


def test_damaged_parquet_is_an_error(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "x.parquet", {"image": images_column({"a.jpg": b"1" * 100})})
    data = source.read_bytes()
    source.write_bytes(data[:-50])
    refused(source, "x.parquet: cannot be read as Parquet")
    source.write_bytes(b"")
    refused(source, "x.parquet: cannot be read as Parquet")
    not_text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    write_parquet(source, {"image": images_column({"a.jpg": b"1"}), "label": not_text})
    refused(source, "x.parquet: cannot be read as Parquet", "utf-8")


def test_rows_in_another_order_than_their_paths_are_read_once(tmp_path: Path) -> None:
    draw = random.Random(1)
    files = {f"{draw.random()}.jpg": draw.randbytes(50) for _ in range(300)}
    source = write_parquet(tmp_path / "x.parquet", {"image": images_column(files)}, 7)
    assert contents(source) == files
    origin, listing = listed(source)
    some = listing.files[100:140]
    read = origin.reader(some)
    assert [read(file) for file in some] == [files[os.fsdecode(file.path)] for file in some]
    with pytest.raises(SourceError, match="as it was; run again"):
        read(listing.files[0])


# ---- size ----


def test_a_listing_of_many_members_is_small_and_quick(tmp_path: Path) -> None:
    count = 4_000
    header = member("x", 10).tobuf(tarfile.USTAR_FORMAT)
    with (tmp_path / "x.tar").open("wb") as file:
        for i in range(count):
            block = bytearray(header)
            block[:9] = b"%09d" % i
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
            file.write(bytes(block) + bytes(512))
        file.write(bytes(1024))
    started = time.perf_counter()
    tracemalloc.start()
    _, listing = listed(tmp_path / "x.tar")
    held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing.files) == count
    assert held_bytes / count < 60
    assert peak_bytes / count < 400
    assert time.perf_counter() - started < 60


def test_members_are_read_without_the_others(tmp_path: Path) -> None:
    source, listing = listed(write_tar(tmp_path / "x.tar", {"a": b"1" * 1000, "b": b"2" * 1000}))
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[: 512 + 1024] = bytes(512 + 1024)
    times = (tmp_path / "x.tar").stat()
    (tmp_path / "x.tar").write_bytes(data)
    os.utime(tmp_path / "x.tar", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert source.reader(listing.files)(listing.files[1]) == b"2" * 1000
    assert io.BytesIO(source.reader(listing.files)(listing.files[0])).read(1) == b"\0"
