from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from fakes import CODECS, make_faces
from typer.testing import CliRunner

from zippy_batch.cli.app import app
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import OutputExists
from zippy_batch.run.estimate import by_suffix, payload_interval
from zippy_batch.run.pipeline import archive, estimate

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)


def test_a_dry_run_of_few_files_says_what_the_archive_is_and_writes_nothing(tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces")
    before = sorted(path.name for path in tmp_path.iterdir())
    told = estimate(faces, tmp_path / "out", OPTIONS, RunOptions(workers=1), codecs=CODECS)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    made = archive(faces, tmp_path / "out", OPTIONS, RunOptions(workers=1), codecs=CODECS)
    assert (told.files, told.shards) == (12, 3)
    assert told.sample.line.kept_raw == made.total.kept_raw
    assert told.sample.line.quality.psnr_worst_db == made.total.quality.psnr_worst_db
    assert told.archive.low == told.archive.high == told.archive.mean
    assert told.archive.mean == pytest.approx(made.total.archive_bytes, rel=0.35)
    with pytest.raises(OutputExists):
        estimate(faces, tmp_path / "out", OPTIONS, RunOptions(workers=1), codecs=CODECS)


def test_a_single_file_takes_its_size_twice_while_it_is_joined(tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces")
    told = estimate(faces, tmp_path / "out.parquet", OPTIONS, RunOptions(workers=1), codecs=CODECS)
    assert told.staging_bytes == 2 * told.archive.high
    assert told.seconds is not None
    assert told.workers == 1


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(5)
    population = [(size, int(size * rng.uniform(0.1, 0.3))) for size in (rng.randint(500, 5000) for _ in range(5000))]
    source, truth = sum(size for size, _ in population), sum(payload for _, payload in population)
    held = 0
    for _ in range(200):
        found = payload_interval(rng.sample(population, 200), len(population), source)
        held += found.low <= truth <= found.high
        assert abs(found.mean - truth) < 0.15 * truth
    assert 180 <= held <= 200


def test_files_are_counted_by_suffix_and_rare_ones_together() -> None:
    paths = [b"a.JPG", b"b.jpg", b"c", *(b"x.%d" % i for i in range(20))]
    found = by_suffix(paths)
    assert found[".jpg"] == 2
    assert sum(found.values()) == len(paths)
    assert len(found) == 9


def test_a_dry_run_from_the_command_line_is_a_report(drawn_faces: Path, tmp_path: Path) -> None:
    arguments = ["archive", str(drawn_faces), str(tmp_path / "out.parquet"), "--dry-run", "--workers", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["dry_run"], told["files"], told["sample"]["images"]) == (True, 40, 40)
    assert told["archive_bytes"]["mean"] > 0
    assert not os.listdir(tmp_path) or not (tmp_path / "out.parquet").exists()
