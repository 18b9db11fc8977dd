"""append: new files become rows of an archive that is there, and a run that finds nothing new changes nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CODECS, files_of, make_faces, pixels
from PIL import Image
from rows import rows_of
from s3 import S3
from s3 import s3 as s3
from s3 import s3_server as s3_server

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.config import AppendOptions, ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ArchiveError, UsageError
from zippy_batch.run import staging_local
from zippy_batch.run.append import AppendReport, append
from zippy_batch.run.pipeline import archive, restore, verify
from zippy_batch.run.report import Progress
from zippy_batch.run.staging_local import open_local_staging, staging_path
from zippy_batch.stores.object_path import Place, listed

OPTIONS = ArchiveOptions(quality=60, device="cpu", shard_size=5, batch_size=3)
RUN = RunOptions(workers=1)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture(params=["out.parquet", "out"])
def output(request: pytest.FixtureRequest, faces: Path, tmp_path: Path) -> Path:
    """12 files in 3 shards of 4."""
    made = tmp_path / "made" / str(request.param)
    made.parent.mkdir()
    archive(faces, made, OPTIONS, RUN, codecs=CODECS)
    return made


def more(faces: Path, count: int = 7) -> None:
    for i in range(count):
        Image.fromarray(pixels(50 + i)).save(faces / f"a{i}.jpg", quality=90)


def again(
    faces: str | Place,
    output: str | Place,
    update: bool = False,
    watch: Callable[[Progress], None] | None = None,
    checksum: bool = False,
) -> AppendReport:
    return append(faces, output, AppendOptions(update, checksum, device="cpu"), RUN, watch, CODECS)


def by_path(path: Place) -> dict[bytes, Row]:
    return {row.path: row for row in rows_of(path)}


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


def test_new_files_are_added_and_old_rows_stay_as_they_were(faces: Path, output: Path, tmp_path: Path) -> None:
    before = rows_of(output)
    more(faces)
    report = again(faces, output)
    assert (report.listed, report.added, report.updated, report.rows) == (19, 7, 0, 19)
    assert rows_of(output)[:12] == before
    # as an archive of all the files has them
    archive(faces, tmp_path / "whole.parquet", OPTIONS, RUN, codecs=CODECS)
    assert by_path(output) == by_path(tmp_path / "whole.parquet")
    with ArchiveReader.open(output) as opened, ArchiveReader.open(tmp_path / "whole.parquet") as whole:
        assert opened.info.options == whole.info.options
        assert opened.info.shards == (4, 4, 4, 3, 4)
    assert verify(output, against=faces, run=RUN, codecs=CODECS).exit_code == 0
    restore(output, tmp_path / "back", RestoreOptions(device="cpu"), RUN, codecs=CODECS)
    assert len(files_of(tmp_path / "back")) == 19
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_an_archive_behind_a_link_grows_and_the_link_stays(faces: Path, output: Path, tmp_path: Path) -> None:
    link = tmp_path / f"link{output.suffix}"
    link.symlink_to(output)
    more(faces)
    assert again(faces, link).rows == 19
    assert link.is_symlink()
    assert len(rows_of(output)) == 19


def test_nothing_new_writes_nothing(faces: Path, output: Path) -> None:
    before = {path: path.stat() for path in output.parent.rglob("*")}
    report = again(faces, output, update=True)
    assert (report.added, report.updated, report.rows) == (0, 0, 12)
    after = {path: path.stat() for path in output.parent.rglob("*")}
    assert {path: (s.st_ino, s.st_mtime_ns) for path, s in after.items()} == {
        path: (s.st_ino, s.st_mtime_ns) for path, s in before.items()
    }


def test_changed_files_replace_their_rows_where_update_says_so(faces: Path, output: Path) -> None:
    (faces / "notes.txt").write_bytes(b"other notes")
    os.utime(faces / "3.jpg", (10, 10))
    assert again(faces, output).added == 0
    report = again(faces, output, update=True)
    assert (report.added, report.updated, report.rows) == (0, 2, 12)
    rows = by_path(output)
    assert rows[b"notes.txt"].payload == b"other notes"
    assert rows[b"3.jpg"].mtime_s == 10
    assert verify(output, against=faces, run=RUN, codecs=CODECS).exit_code == 0
    assert again(faces, output, update=True).updated == 0


def test_a_new_file_that_could_not_be_restored_beside_an_old_one_is_refused(faces: Path, tmp_path: Path) -> None:
    """Whichever of the two comes back in another format, also where the source no longer has the old one."""
    options = replace(OPTIONS, exact="never")
    for old, new in (("p.png", "p.png.jpg"), ("p.png.jpg", "p.png")):
        (tmp_path / old).mkdir()
        Image.fromarray(pixels(3, 48, 48)).save(tmp_path / old / old)
        archive(tmp_path / old, tmp_path / "out.parquet", options, RunOptions(workers=1, overwrite=True), codecs=CODECS)
        (tmp_path / old / old).unlink()
        Image.fromarray(pixels(4, 48, 48)).save(tmp_path / old / new)
        before = content(tmp_path / "out.parquet")
        with pytest.raises(UsageError, match=r"p\.png: would be restored as p\.png\.jpg, which is there as well"):
            again(tmp_path / old, tmp_path / "out.parquet")
        assert content(tmp_path / "out.parquet") == before


def test_by_checksum_files_of_other_content_alone_replace_their_rows(faces: Path, output: Path) -> None:
    os.utime(faces / "3.jpg", (10, 10))
    other = io.BytesIO()
    Image.fromarray(pixels(77)).save(other, "JPEG", quality=20)
    for name, data in (("notes.txt", b"Not a picture"), ("1.jpg", other.getvalue())):
        facts = (faces / name).stat()
        (faces / name).write_bytes(data.ljust(facts.st_size, b"\0"))
        os.utime(faces / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert again(faces, output, update=True).updated == 1
    os.utime(faces / "3.jpg", (20, 20))
    assert again(faces, output, update=True, checksum=True).updated == 2
    rows = by_path(output)
    assert rows[b"notes.txt"].payload == b"Not a picture"
    assert rows[b"3.jpg"].mtime_s == 10
    assert verify(output, against=faces, run=RUN, codecs=CODECS).exit_code == 0
    assert again(faces, output, update=True, checksum=True).updated == 0
    with pytest.raises(UsageError, match="checksum says how update compares; give both"):
        again(faces, output, checksum=True)


def test_parts_that_stay_are_linked_and_a_reader_of_the_old_state_goes_on(faces: Path, tmp_path: Path) -> None:
    archive(faces, tmp_path / "out", OPTIONS, RUN, codecs=CODECS)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
    more(faces)
    with ArchiveReader.open(tmp_path / "out") as opened:
        old = [opened.read_rows(shard) for shard in opened.shards()]
        again(faces, tmp_path / "out")
        assert [opened.read_rows(shard) for shard in opened.shards()] == old
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
    assert before.items() <= after.items()


def test_a_reader_finds_an_archive_at_every_moment_of_the_swap(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(faces, tmp_path / "out", OPTIONS, RUN, codecs=CODECS)
    seen = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append(len(rows_of(tmp_path / "out")))
        replace(source, target)
        seen.append(len(rows_of(tmp_path / "out")))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", watched)
        more(faces)
        again(faces, tmp_path / "out")
    assert sorted(seen) == seen
    assert set(seen) == {12, 19}


def test_where_names_cannot_be_exchanged_two_renames_do(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(faces, tmp_path / "out", OPTIONS, RUN, codecs=CODECS)
    more(faces)
    monkeypatch.setattr(staging_local, "exchange", lambda one, other: False)
    again(faces, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 19
    assert not staging_path(tmp_path / "out").exists()


def test_a_reader_that_meets_a_part_of_the_next_state_is_told_to_open_again(faces: Path, tmp_path: Path) -> None:
    archive(faces, tmp_path / "out", OPTIONS, RUN, codecs=CODECS)
    with ArchiveReader.open(tmp_path / "out") as opened:
        (faces / "notes.txt").write_bytes(b"other notes")
        again(faces, tmp_path / "out", update=True)
        with pytest.raises(ArchiveError, match="was changed after it was opened, and part 2 is another one; open it"):
            opened.row_groups(2)


def test_an_interrupted_append_goes_on(faces: Path, output: Path) -> None:
    more(faces, 12)
    before = content(output)

    def interrupt(progress: Progress) -> None:
        if progress.shards == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(faces, output, watch=interrupt)
    assert content(output) == before
    seen: list[Progress] = []
    again(faces, output, watch=seen.append)
    assert seen[-1].images_total == 8
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert verify(output, against=faces, run=RUN, codecs=CODECS).exit_code == 0


def test_a_file_that_changes_after_an_interrupt_is_read_again(faces: Path, output: Path) -> None:
    more(faces, 8)

    def interrupt(progress: Progress) -> None:
        if progress.shards == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(faces, output, watch=interrupt)
    facts = (faces / "a0.jpg").stat()
    data = bytearray((faces / "a0.jpg").read_bytes())
    data[-3] ^= 1
    (faces / "a0.jpg").write_bytes(data)
    os.utime(faces / "a0.jpg", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    again(faces, output)
    assert verify(output, against=faces, run=RUN, codecs=CODECS).exit_code == 0


def test_two_at_once_do_not_mix(faces: Path, output: Path) -> None:
    before = content(output)
    more(faces)
    with (
        open_local_staging(output, "f" * 64, {}, True),
        pytest.raises(UsageError, match="another run is writing here"),
    ):
        again(faces, output)
    assert content(output) == before


def test_a_source_that_cannot_be_read_changes_nothing(faces: Path, output: Path) -> None:
    before = content(output)
    with pytest.raises(UsageError):
        again(faces.with_name("nowhere"), output)
    with pytest.raises(UsageError, match="there is no archive"):
        again(faces, output.with_name("nothing.parquet"))
    assert content(output) == before
    assert not staging_path(output).exists()


def test_an_archive_labelled_by_a_table_wants_one_for_the_new_files(faces: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.jpg,one\n1.jpg,two\n")
    made = tmp_path / "out.parquet"
    archive(faces, made, ArchiveOptions(device="cpu", labels=str(table)), RUN, codecs=CODECS)
    Image.fromarray(pixels(60)).save(faces / "a.jpg")
    with pytest.raises(UsageError, match="came from a table; say where those of the new files come from, by --labels"):
        again(faces, made)
    append(faces, made, AppendOptions(labels="none", device="cpu"), RUN, None, CODECS)
    assert by_path(made)[b"0.jpg"].label == "one"
    assert by_path(made)[b"a.jpg"].label is None


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_to_an_archive_in_a_store(name: str, s3: S3, faces: Path) -> None:
    archive(faces, s3.uri(name), OPTIONS, RUN, codecs=CODECS)
    more(faces)
    assert again(faces, s3.uri(name)).rows == 19
    assert len(by_path(s3.at(name))) == 19
    assert verify(s3.uri(name), against=faces, run=RUN, codecs=CODECS).exit_code == 0
    assert [info.base_name for info in listed(s3.at(name).parent)] == [name]
