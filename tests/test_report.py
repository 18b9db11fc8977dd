from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zippy_batch.run.report import (
    ArchiveReport,
    Finding,
    Line,
    Progress,
    Quality,
    RestoreLine,
    RestoreReport,
    RunFacts,
    VerifyReport,
    size_text,
    total_of,
)

RUN = RunFacts(seconds=2.0, images=30, source_bytes=30_000, device="cpu", workers=1)


def line(shard: int, **changes: object) -> Line:
    facts = {
        "images": 10,
        "source_bytes": 10_000,
        "archive_bytes": 2_000,
        "lossy_images": 10,
        "lossy_bytes": 1_800,
        "lossy_pixels": 17_640,
    }
    return Line(shard, **{**facts, **changes})  # type: ignore[arg-type]


def report(*lines: Line, **changes: object) -> ArchiveReport:
    facts = {"models": {"latent": "ab"}, "options": {"quality": 75}}
    return ArchiveReport("out.parquet", lines, total_of(lines, 5_000), **{**facts, **changes})  # type: ignore[arg-type]


pairs = st.lists(st.tuples(st.floats(10, 99), st.floats(-1, 1)), min_size=1, max_size=60)


@given(pairs, pairs)
def test_quality_of_parts_adds_up_to_quality_of_all(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    parts, whole = Quality.of(a) + Quality.of(b), Quality.of([*a, *b])
    assert parts.images == whole.images
    assert parts.psnr_mean_db == pytest.approx(whole.psnr_mean_db)
    assert (parts.psnr_p5_db, parts.psnr_worst_db, parts.ssim_worst) == (
        whole.psnr_p5_db,
        whole.psnr_worst_db,
        whole.ssim_worst,
    )
    assert parts.ssim_mean == pytest.approx(whole.ssim_mean)


def test_mean_psnr_pools_the_squared_error() -> None:
    quality = Quality.of([(20.0, 0.5), (99.0, 1.0)])
    assert quality.psnr_mean_db == pytest.approx(20 + 10 * math.log10(2))
    assert Quality.of([(99.0, 1.0)]).psnr_mean_db == 99.0


def test_fifth_percentile_is_reached_by_95_percent() -> None:
    psnrs = np.random.default_rng(0).normal(30, 2, 1000)
    p5 = Quality.of([(psnr, 1.0) for psnr in psnrs]).psnr_p5_db
    assert p5 is not None
    assert (psnrs >= p5).mean() >= 0.95
    assert p5 == pytest.approx(np.percentile(psnrs, 5), abs=0.1)


def test_nothing_measured_is_none_and_not_a_number() -> None:
    quality = Quality()
    assert [quality.psnr_mean_db, quality.psnr_p5_db, quality.psnr_worst_db, quality.ssim_mean] == [None] * 4


def test_archive_report_is_json_without_nan() -> None:
    made = report(line(0, quality=Quality.of([(30.0, 0.9)])), line(1, kept_raw={"corrupt": 2}), run=RUN)
    found = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert found["total"]["images"] == 20
    assert found["total"]["raw_reasons"] == {"corrupt": 2}
    assert found["total"]["ratio"] == 4.0
    assert found["bytes_outside_shards"] == 1_000
    assert found["run"]["images_per_s"] == 15.0


def test_table_aligns_and_leaves_out_what_no_shard_has() -> None:
    text = report(line(0, quality=Quality.of([(30.0, 0.9)])), line(1)).lines()
    assert len({len(row) for row in text[:4]}) == 1
    assert "PSNR dB" in text[0]
    assert "images/s" not in text[0]
    assert text[3].split()[0] == "total"


def test_table_says_when_quality_was_not_measured() -> None:
    assert any("--no-verify" in row for row in report(line(0)).lines())


def test_floor_counts_how_many_needed_what() -> None:
    kept_raw = {"below --min-psnr 30 at every quality": 1, "corrupt": 1}
    made = report(line(0, images=11, lossy_images=8, exact_images=1, raised=3, kept_raw=kept_raw), min_psnr_db=30.0)
    assert made.floor is not None
    assert made.floor.to_dict() == {"min_psnr_db": 30.0, "at_once": 5, "raised": 3, "exact": 1, "kept_raw": 1}
    assert "5 images at the quality asked for, 3 with it raised, 1 exact, 1 kept raw" in "\n".join(made.lines())


def test_what_the_rows_of_each_codec_take_is_told_where_some_are_exact() -> None:
    only_lossy = report(line(0))
    assert not any(row.startswith("lossy:") for row in only_lossy.lines())
    sizes = {"lossy_source_bytes": 8_000, "exact_images": 2, "exact_source_bytes": 1_000, "exact_bytes": 440}
    made = report(line(0, **sizes, kept_raw={"not a JPEG": 3}, raw_bytes=77))
    assert [row for row in made.lines() if "of payload" in row] == [
        "exact: 2 files of 1.00 kB in 440 B of payload (0.440)",
        "lossy: 10 files of 8.00 kB in 1.80 kB of payload (0.225)",
    ]
    total = made.to_dict()["total"]
    assert (total["exact_images"], total["exact_bytes"], total["lossy_bytes"], total["raw_bytes"]) == (2, 440, 1800, 77)


def test_exact_rows_that_were_not_decoded_are_told() -> None:
    exact = line(0, images=2, lossy_images=0, exact_images=2, exact_source_bytes=1_000, exact_bytes=440)
    for verify in (True, False):
        made = replace(report(exact), options={"verify": verify})
        assert any("no payload was decoded" in row for row in made.lines()) == (not verify)


def test_restore_report_fails_with_damage_and_names_it() -> None:
    finding = Finding("a.jpg", "checksum differs", shard=0, row=4)
    lines = (RestoreLine(0, images=9, damaged=(finding,)),)
    made = RestoreReport("a.parquet", "out", lines, lines[0] + RestoreLine(1), 10, False, RUN)
    assert made.exit_code == 1
    assert any("shard 0, row 4: a.jpg: checksum differs" in row for row in made.lines())
    assert json.loads(json.dumps(made.to_dict()))["damaged"][0]["row"] == 4


@pytest.mark.parametrize("kind", ["damaged", "missing", "extra", "differing"])
def test_verify_report_fails_with_any_finding(kind: str) -> None:
    assert VerifyReport("a", 10, 0, against="faces").exit_code == 0
    failed = VerifyReport("a", 10, 0, against="faces", **{kind: (Finding("x", "wrong"),)})  # type: ignore[arg-type]
    assert failed.exit_code == 1
    assert any("x: wrong" in row for row in failed.lines())


def test_progress_tells_speed_ratio_and_time_left() -> None:
    progress = Progress(50, 200, 50_000, 200_000, 10_000, 0, 1, seconds=5.0)
    assert (progress.images_per_s, progress.megabytes_per_s, progress.ratio) == (10.0, 0.01, 5.0)
    assert progress.seconds_left == 15.0
    assert Progress(0, 10, 0, 10, 0, 0, 1, 0.0).seconds_left is None


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (45_600_000, "45.6 MB"), (999_600, "1.00 MB")]
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text


def test_lines_pickle() -> None:
    sample = line(0, quality=Quality.of([(30.0, 0.9)]), kept_raw={"corrupt": 1})
    assert pickle.loads(pickle.dumps(sample)) == sample


WIDE = Line(
    0, 4096, 10**9, 10**8, 4000, 10**8, 10**9, 10**9, 50, 10**6, 10**7, quality=Quality.of([(31.4, 0.91)]), seconds=9.5
)


@pytest.mark.parametrize("columns", [60, 72, 80, 100, None])
def test_a_table_fits_its_terminal_and_says_what_it_leaves_out(columns: int | None) -> None:
    report = ArchiveReport("a", (WIDE,), WIDE, {}, {})
    lines = report.lines(columns)
    end = next(i for i, line in enumerate(lines) if line.startswith("exact:"))
    rows = [line for line in lines[:end] if not line.startswith("not shown")]
    assert len(rows) == 3
    assert max(map(len, rows)) <= (columns or 1000)
    assert all(name in rows[0] for name in ("shard", "images", "archive", "ratio", "raw"))
    left_out = ["worst SSIM"] if columns else []
    assert [name for name in left_out if not any(name in line for line in lines[:end])] == []


def test_one_is_not_counted_as_many() -> None:
    facts = replace(RUN, images=1, empty_directories=1)
    lines = ArchiveReport("a", (WIDE,), WIDE, {}, {}, run=facts).lines()
    assert any(line.startswith("1 image in 2.0 s") for line in lines)
    assert "1 empty directory is not in the archive, which holds files" in lines
