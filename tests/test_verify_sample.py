"""verify --sample: some rows, chosen at random, are checked and no file as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import face_rows, rows_of, write_archive
from typer.testing import CliRunner

from zippy_batch.api import verify
from zippy_batch.cli.app import app
from zippy_batch.errors import UsageError

ROWS = face_rows(200)


def spoil(path: Path, payload: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(payload)
    data[at : at + 2] = bytes(byte ^ 255 for byte in data[at : at + 2])
    path.write_bytes(data)


def test_a_sample_has_as_many_rows_as_were_asked_for(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", ROWS, 30)
    report = verify(tmp_path / "a", sample=50)
    assert (report.rows, report.sampled, report.exit_code) == (200, 50, 0)
    assert report.run is not None
    assert report.run.images == 50
    assert 0 < report.checked_bytes < sum(len(row.payload) for row in rows_of(tmp_path / "a"))
    assert report.lines()[-1].endswith("has no damage in the sample")
    assert verify(tmp_path / "a", sample=10_000).sampled == 200


def test_a_sample_of_all_rows_finds_damage(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS, 30)
    spoil(tmp_path / "a.parquet", ROWS[77].payload)
    report = verify(tmp_path / "a.parquet", sample=200)
    assert report.exit_code == 1
    assert "000078.jpg" in {finding.path for finding in report.damaged}


def test_the_report_says_megabytes_a_second(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    report = verify(tmp_path / "a.parquet")
    assert report.checked_bytes == (tmp_path / "a.parquet").stat().st_size
    assert report.lines()[1].endswith(" MB/s")
    found = CliRunner().invoke(
        app, ["verify", str(tmp_path / "a.parquet"), "--sample", "5", "--json", "--workers", "1"]
    )
    assert json.loads(found.stdout)["sampled"] == 5


def test_a_sample_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    with pytest.raises(UsageError, match="leave out one of the two"):
        verify(tmp_path / "a.parquet", against=tmp_path, sample=5)
    found = CliRunner().invoke(app, ["verify", str(tmp_path / "a.parquet"), "--sample", "0"])
    assert (found.exit_code, found.stderr) == (2, "error: --sample must be 1 or more, not 0\n")
