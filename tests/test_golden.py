"""Archives are read for ever as they were written: rows, bytes, symbols and pixels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from golden.make import content

from zippy_batch.config import RestoreOptions, RunOptions, VerifyOptions
from zippy_batch.run.pipeline import restore, verify

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = sorted(GOLDEN.glob("v*.json"))


def test_the_format_has_a_golden_archive() -> None:
    from zippy_batch.archives.schema import FORMAT_VERSION

    assert [path.stem for path in EXPECTED] == [f"v{FORMAT_VERSION}"]


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["file", "directory"])
def test_golden_archive_reads_as_it_was_written(expected: Path, form: str, tmp_path: Path) -> None:
    archive = expected.with_suffix(".parquet" if form == "file" else "")
    rows = json.loads(expected.read_text())
    assert content(archive) == rows
    report = verify(archive, options=VerifyOptions(deep=True), run=RunOptions(workers=1))
    assert report.exit_code == 0
    restore(archive, tmp_path / "out", RestoreOptions(device="cpu"), RunOptions(workers=1))
    found = {
        os.path.relpath(os.path.join(d, f), os.fsencode(tmp_path / "out"))
        for d, _, fs in os.walk(os.fsencode(tmp_path / "out"))
        for f in fs
    }
    wanted = {
        bytes.fromhex(row["path"]) + (b".jpg" if row["codec"] == "latent" and row["source"][1] == "png" else b"")
        for row in rows
    }
    assert found == wanted
