"""diff and dedupe: what differs between archives, and what is in one several times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rows import exact_row, face_rows, info_for, labelled, mixed_rows, raw_row, write_archive
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.cli.app import app
from zippy_batch.run.diff import Change

ROWS = labelled(face_rows(30))


def test_the_same_rows_do_not_differ_however_they_are_cut(tmp_path: Path) -> None:
    rows = labelled(mixed_rows(60))
    write_archive(tmp_path / "a", rows, 7)
    write_archive(tmp_path / "b.parquet", rows, 60)
    report = zb.diff(tmp_path / "a", tmp_path / "b.parquet")
    assert (report.exit_code, report.same, report.changed) == (0, 60, ())


def test_what_differs_is_named_by_what_it_is(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    other = list(ROWS[:-1])
    other[0] = replace(other[0], label="somebody else")
    other[1] = replace(other[1], payload=b"another picture")
    other[2] = replace(other[2], quality=90, psnr=35.0)
    other[3] = replace(other[3], source_bytes=17, label=None)
    other[4] = replace(other[4], path=b"renamed.jpg")
    other[5] = replace(other[5], mtime_s=1)
    write_archive(tmp_path / "b.parquet", sorted(other, key=lambda row: row.path))
    report = zb.diff(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert report.exit_code == 1
    assert report.only_a == ("000005.jpg", "000030.jpg")
    assert report.only_b == ("renamed.jpg",)
    assert report.changed == (
        Change("000001.jpg", ("label",)),
        Change("000002.jpg", ("content",)),
        Change("000003.jpg", ("quality",)),
        Change("000004.jpg", ("content",)),
    )
    assert report.same == 24


def test_payloads_of_two_models_are_not_compared(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    other = [replace(row, payload=row.payload + b"!") for row in ROWS]
    write_archive(tmp_path / "b.parquet", other, info=info_for(model_files={"latent": b"another model"}))
    assert zb.diff(tmp_path / "a.parquet", tmp_path / "b.parquet").exit_code == 0


def test_the_exit_code_is_that_of_diff(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    write_archive(tmp_path / "b.parquet", ROWS[1:])
    a, b = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
    assert CliRunner().invoke(app, ["diff", a, a]).exit_code == 0
    found = CliRunner().invoke(app, ["diff", a, b, "--json"])
    assert (found.exit_code, json.loads(found.stdout)["only_a"]) == (1, ["000001.jpg"])
    assert "- 000001.jpg" in CliRunner().invoke(app, ["diff", a, b]).stdout
    (tmp_path / "b.parquet").write_bytes(b"no archive")
    found = CliRunner().invoke(app, ["diff", a, b])
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)


def test_the_same_file_under_several_paths_is_a_group_and_labels_that_disagree_come_first(tmp_path: Path) -> None:
    rows = list(ROWS[:10])
    rows += [replace(rows[1], path=b"x1.jpg"), replace(rows[2], path=b"x2.jpg", label="another")]
    rows += [replace(rows[1], path=b"x3.jpg")]
    rows += [raw_row(b"y1.txt", b"notes"), raw_row(b"y2.txt", b"notes")]
    rows += [exact_row(b"z1.jpg", b"scan", b"header"), exact_row(b"z2.jpg", b"scan", b"another header")]
    write_archive(tmp_path / "a", rows, 5)
    report = zb.dedupe(tmp_path / "a")
    assert [group.paths for group in report.groups] == [
        ("000003.jpg", "x2.jpg"),
        ("000002.jpg", "x1.jpg", "x3.jpg"),
        ("y1.txt", "y2.txt"),
    ]
    assert [group.disagrees for group in report.groups] == [True, False, False]
    assert (report.rows, report.spare) == (17, 4)


@pytest.mark.parametrize(("flags", "code"), [([], 2), (["--report"], 0)])
def test_dedupe_says_that_it_only_reports(flags: list[str], code: int, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", [*ROWS[:3], replace(ROWS[2], path=b"x.jpg", label=None)])
    found = CliRunner().invoke(app, ["dedupe", str(tmp_path / "a.parquet"), *flags])
    assert found.exit_code == code
    assert "labels disagree: 000003.jpg (id_2), x.jpg (None)" in found.stdout or code
