"""merge, select and split: rows of archives copied into archives, and not a byte of a restored file changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CODECS, files_of, make_faces
from rows import MODEL, below, face_rows, info_for, labelled, mixed_rows, rows_of, write_archive
from s3 import S3
from s3 import s3 as s3
from s3 import s3_server as s3_server
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.cli.app import app
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import DamagedRow, ModelError, OutputExists, UsageError
from zippy_batch.run import copy_rows
from zippy_batch.run.merge import Split, Wish, merge, select
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.run.staging_local import staging_path
from zippy_batch.stores.object_path import Place


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


@pytest.mark.parametrize("output", ["c.parquet", "c"])
def test_a_merged_archive_has_the_rows_of_its_sources(output: str, tmp_path: Path) -> None:
    a, b = below("a", mixed_rows(1300)), below("b", labelled(face_rows(700, seed=1)))
    write_archive(tmp_path / "a.parquet", a)
    write_archive(tmp_path / "b", b)
    report = merge([tmp_path / "a.parquet", tmp_path / "b"], tmp_path / output)
    assert sorted(rows_of(tmp_path / output), key=lambda row: row.path) == sorted([*a, *b], key=lambda row: row.path)
    assert (report.rows, report.shards, report.verbatim) == (2000, 5, 5)
    assert zb.verify(tmp_path / output).exit_code == 0
    first = content(tmp_path / output)
    merge([tmp_path / "a.parquet", tmp_path / "b"], tmp_path / output, overwrite=True)
    assert content(tmp_path / output) == first
    assert not staging_path(tmp_path / output).exists()


def test_restored_files_are_those_of_the_sources(tmp_path: Path) -> None:
    run, options = RunOptions(workers=1), ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
    faces = make_faces(tmp_path / "faces")
    archive(faces, tmp_path / "a.parquet", options, run, codecs=CODECS)
    archive(faces, tmp_path / "b", options, run, codecs=CODECS)
    merge([tmp_path / "a.parquet", tmp_path / "b"], tmp_path / "c.parquet", prefix=True)
    select(tmp_path / "c.parquet", tmp_path / "d.parquet", Wish(select=("a/sub/*", "b/**")))
    for name in ("a.parquet", "b", "c.parquet", "d.parquet"):
        restore(
            tmp_path / name,
            tmp_path / "back" / name.removesuffix(".parquet"),
            RestoreOptions(device="cpu"),
            run,
            codecs=CODECS,
        )
    expected = files_of(tmp_path / "back/a")
    assert files_of(tmp_path / "back/c/a") == expected == files_of(tmp_path / "back/c/b")
    assert files_of(tmp_path / "back/d/b") == expected
    assert files_of(tmp_path / "back/d/a/sub") == files_of(tmp_path / "back/a/sub")


def test_a_path_that_two_archives_have_is_refused_and_prefixes_keep_them_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_archive(tmp_path / f"{name}.parquet", face_rows(20))
    sources = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(UsageError, match=r"000001.jpg is in .*a.parquet and in .*b.parquet \(and 19 more\)"):
        merge(sources, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    merge(sources, tmp_path / "c", prefix=True)
    assert [row.path for row in rows_of(tmp_path / "c")] == [
        f"{name}/{i:06d}.jpg".encode() for name in "ab" for i in range(1, 21)
    ]
    with pytest.raises(UsageError, match="two of the archives are called a"):
        merge([tmp_path / "a.parquet"] * 2, tmp_path / "d", prefix=True)


def test_files_that_could_not_be_restored_side_by_side_are_refused(tmp_path: Path) -> None:
    face, other = face_rows(2)
    png = replace(face, path=b"a.png", source_format="png", jpeg_tables=None, jpeg_quality=None)
    write_archive(tmp_path / "a.parquet", [png])
    for path in (b"a.png.jpg", b"a.png.jpg/b.jpg"):
        write_archive(tmp_path / "b.parquet", [replace(other, path=path)])
        sources = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
        with pytest.raises(UsageError, match=r"side by side: a\.png\.jpg would be both; --prefix puts the name"):
            merge(sources, tmp_path / "c")
        assert [one.name for one in tmp_path.iterdir() if one.name.startswith((".", "c"))] == []
        merge(sources, tmp_path / "c", prefix=True)
        shutil.rmtree(tmp_path / "c")
        shutil.rmtree(tmp_path / "b.parts")


def test_models_are_carried_and_two_of_one_codec_refused(tmp_path: Path) -> None:
    own = info_for(model_files={"latent": MODEL})
    write_archive(tmp_path / "a.parquet", below("a", face_rows(5)), info=own)
    write_archive(tmp_path / "b.parquet", below("b", face_rows(5)), info=own)
    write_archive(tmp_path / "c.parquet", below("c", face_rows(5)))
    merge([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out")
    with ArchiveReader.open(tmp_path / "out") as opened:
        assert opened.info.model_files == {"latent": MODEL}
        assert set(opened.info.models) == {"latent"}
    with pytest.raises(ModelError, match=r"a.parquet and .*c.parquet were coded with two models of the latent codec"):
        merge([tmp_path / "a.parquet", tmp_path / "c.parquet"], tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_options_that_differ_are_not_recorded(tmp_path: Path) -> None:
    info = info_for()
    write_archive(tmp_path / "a.parquet", below("a", face_rows(5)), info=info)
    write_archive(
        tmp_path / "b.parquet", below("b", face_rows(5)), info=replace(info, options={**info.options, "quality": 60})
    )
    merge([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out")
    assert zb.open(tmp_path / "out").info.options == {k: v for k, v in info.options.items() if k != "quality"}
    assert zb.stats(tmp_path / "out").total.images == 10


@pytest.mark.parametrize("chosen", [None, "psnr > 28"])
def test_a_damaged_row_is_refused_by_archive_and_row(chosen: str | None, tmp_path: Path) -> None:
    rows = face_rows(700)
    write_archive(tmp_path / "a.parquet", rows)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = data.index(rows[3].payload)
    data[at : at + 2] = bytes(byte ^ 255 for byte in data[at : at + 2])
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DamagedRow, match=r"a.parquet: shard 0, row \d"):
        select(tmp_path / "a.parquet", tmp_path / "out.parquet", Wish(chosen))
    assert not (tmp_path / "out.parquet").exists()


def test_select_takes_rows_by_condition_and_by_glob(tmp_path: Path) -> None:
    rows = labelled(mixed_rows(1500))
    write_archive(tmp_path / "a", rows)
    report = zb.select(tmp_path / "a", tmp_path / "out.parquet", where="label == 'id_3'", select="**")
    expected = [row for row in rows if row.label == "id_3"]
    assert sorted(rows_of(tmp_path / "out.parquet"), key=lambda row: row.path) == sorted(expected, key=lambda r: r.path)
    assert (report.rows, report.shards) == (len(expected), 1)
    with pytest.raises(UsageError, match=r"no row of .* is chosen; nothing was written"):
        zb.select(tmp_path / "a", tmp_path / "none.parquet", where="label == 'nobody'")
    with pytest.raises(OutputExists):
        zb.select(tmp_path / "a", tmp_path / "out.parquet", where="label == 'id_3'")
    with pytest.raises(UsageError, match="is one of the archives that are read"):
        zb.select(tmp_path / "a", tmp_path / "a", where="label == 'id_3'", overwrite=True)


def test_a_split_holds_every_row_once_and_a_row_stays_where_it_is(tmp_path: Path) -> None:
    rows = labelled(face_rows(900))
    write_archive(tmp_path / "all.parquet", rows)
    write_archive(tmp_path / "some.parquet", rows[:500])
    shares = {"train": 80, "test": 20}
    of_all = zb.split(tmp_path / "all.parquet", tmp_path / "x.parquet", shares)
    zb.split(tmp_path / "some.parquet", tmp_path / "y.parquet", shares)
    train, test = ({row.path for row in rows_of(tmp_path / f"x-{name}.parquet")} for name in shares)
    assert train | test == {row.path for row in rows}
    assert not train & test
    assert 650 < len(train) < 790
    assert of_all["train"].rows == len(train)
    assert {row.path for row in rows_of(tmp_path / "y-test.parquet")} == test & {row.path for row in rows[:500]}
    # of chosen rows each goes where it went among all
    zb.split(tmp_path / "all.parquet", tmp_path / "z.parquet", "train=80,test=20", where="label == 'id_3'")
    chosen = {row.path for row in rows if row.label == "id_3"}
    assert {row.path for row in rows_of(tmp_path / "z-test.parquet")} == test & chosen
    assert {row.path for row in rows_of(tmp_path / "z-train.parquet")} == train & chosen


def test_a_split_by_label_keeps_a_label_together(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", [row for row in labelled(face_rows(300)) if row.label])
    reports = zb.split(tmp_path / "a.parquet", tmp_path / "parts", 2, by="label")
    one, other = ({row.label for row in rows_of(tmp_path / f"parts-{i}")} for i in range(2))
    assert not one & other
    assert sum(report.rows for report in reports.values()) == 200


@pytest.mark.parametrize("text", ["1", "0", "train=0,test=1", "train=1", "a=1,a=2", "a/b=1,c=1", "x", "5000", ""])
def test_a_split_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a number of parts from 2 to 1000, or shares by name"):
        Split.parse(text)


def test_an_interrupted_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "a", below("a", face_rows(1900)))
    merge([tmp_path / "a"], tmp_path / "undisturbed")
    copied: list[int] = []
    copy = copy_rows._copy

    def failing(plan: copy_rows.CopyPlan, number: int, part: Place) -> None:
        if number == 2 and not copied.count(2):
            copied.append(2)
            raise KeyboardInterrupt
        copied.append(number)
        copy(plan, number, part)

    monkeypatch.setattr(copy_rows, "_copy", failing)
    monkeypatch.setattr(copy_rows, "_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        merge([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge([tmp_path / "a"], tmp_path / "out")
    assert copied == [0, 1, 2, 2, 3]
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["c.parquet", "c"])
def test_from_and_to_an_object_store(name: str, s3: S3, tmp_path: Path) -> None:
    a, b = below("a", face_rows(700)), below("b", face_rows(20, seed=1))
    write_archive(tmp_path / "a", a)
    write_archive(tmp_path / "b.parquet", b)
    merge([tmp_path / "a", tmp_path / "b.parquet"], s3.uri(name))
    assert rows_of(s3.at(name)) == [*a, *b]
    merge([s3.uri(name)], tmp_path / name)
    assert rows_of(tmp_path / name) == [*a, *b]


def test_a_preset_sets_what_a_run_replaces(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", face_rows(20))
    (tmp_path / "preset.toml").write_text("[run]\noverwrite = true\nworkers = 4\n")
    command = ["select", str(tmp_path / "a.parquet"), "--where", "psnr > 0", "-o", str(tmp_path / "b.parquet")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--config", str(tmp_path / "preset.toml")]).exit_code == 0


def test_the_command_line(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", face_rows(20))
    write_archive(tmp_path / "b.parquet", face_rows(20))
    a, b, c = (str(tmp_path / f"{name}.parquet") for name in "abc")
    found = CliRunner().invoke(app, ["merge", a, b, "-o", c])
    assert found.exit_code == 2
    assert "--prefix puts the name of its archive before each path" in found.stderr
    found = CliRunner().invoke(app, ["merge", a, b, "-o", c, "--prefix"])
    assert found.exit_code == 0
    assert "40 files in 1 shard" in found.stdout
    found = CliRunner().invoke(app, ["select", c, "--split", "2", "-o", str(tmp_path / "d.parquet"), "--json"])
    assert sum(report["files"] for report in json.loads(found.stdout)) == 40
    found = CliRunner().invoke(app, ["select", c, "-o", str(tmp_path / "e.parquet")])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
