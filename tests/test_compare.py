"""What a comparison measures, what it does without, and what it draws."""

from __future__ import annotations

import io
import json
import math
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from synthetic_faces import draw_faces
from typer.testing import CliRunner, Result

from zippy_batch.cli.app import app
from zippy_batch.compare import charts, codecs, measure
from zippy_batch.compare.curves import Point, level_for, log_bytes_at, mean_ratio, ratio_at, unbeaten
from zippy_batch.compare.measure import CompareOptions, compare
from zippy_batch.compare.report import CONTENDERS, OWN_EXACT, OWN_LOSSY, SOURCE, Comparison
from zippy_batch.compare.ssimulacra2 import ssimulacra2
from zippy_batch.compare.stored import FILE_ENCODINGS, _written, parquet_bytes, parquet_file
from zippy_batch.errors import UsageError
from zippy_batch.run.plan import spread
from zippy_batch.run.report import Progress

FORMATS = ("jpeg", "jpeg2000", "webp", "avif")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 drawn faces of 42x42. Read only."""
    directory = tmp_path_factory.mktemp("compare") / "faces"
    draw_faces(directory, 12)
    return directory


@pytest.fixture(scope="module")
def compared(faces: Path) -> Comparison:
    only = (SOURCE, *FORMATS, OWN_LOSSY, OWN_EXACT)
    return compare(faces, CompareOptions(only=only, qualities=(40, 75), device="cpu", cores=1, faces=3))


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def few(faces: Path, *only: str, limit: int = 0) -> Comparison:
    return compare(faces, CompareOptions(only=only, qualities=(60,), device="cpu", cores=1, limit=limit))


# curves


def curve(factor: float, at_db: Sequence[float]) -> list[Point]:
    """A codec that takes 10 % more bytes for each dB."""
    return [Point(factor * 100 * 1.1 ** (db - 25), db) for db in at_db]


def test_ratio_at_equal_psnr_is_that_of_the_curves() -> None:
    half, whole = curve(0.5, [24, 27, 31]), curve(1.0, [26, 28, 29, 35])
    found = mean_ratio(half, whole)
    assert found
    assert found.ratio == pytest.approx(0.5)
    assert (found.low, found.high) == (26, 31)
    assert ratio_at(half[1], whole) == pytest.approx(0.5)


def test_nothing_is_said_outside_of_a_curve() -> None:
    assert mean_ratio(curve(1, [20, 22]), curve(1, [23, 25])) is None
    assert mean_ratio([], curve(1, [23, 25])) is None
    assert ratio_at(Point(100, 22), curve(1, [23, 25])) is None


def test_level_for_a_size_lies_between_the_levels_measured() -> None:
    assert level_for(200, (10, 50, 90), (100, 200, 400)) == 50
    assert level_for(math.sqrt(200 * 400), (90, 50, 10), (400, 200, 100)) == 70
    assert level_for(1, (10, 50), (100, 200)) == 10


def test_of_two_ways_to_code_the_better_one_counts_at_each_quality() -> None:
    """One is better below 28 dB, the other one above."""
    low, high = curve(1.0, [22, 25, 27]), [Point(300, 26), Point(130, 28), Point(140, 31)]
    longer = [*low, Point(200, 29)]
    assert unbeaten([longer, high]) == [[True, True, True, False], [False, True, True]]
    assert unbeaten([low, low]) == [[True, True, True], [False, False, False]]
    assert unbeaten([low]) == [[True, True, True]]


# what files take in Parquet


def test_rivals_are_stored_as_a_careful_user_would() -> None:
    """The least and the greatest of files, in statistics or a dictionary, would be charged as files of their own."""
    files = [np.random.default_rng(i).bytes(3000) for i in range(8)]
    names = [b"%06d.jpg" % i for i in range(8)]
    data = parquet_file(names, files)
    assert pq.read_table(io.BytesIO(data)).to_pydict() == {"path": [name.decode() for name in names], "image": files}
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(i) for i in range(2)]
    assert all(column.statistics is None and not column.has_dictionary_page for column in columns)
    assert "DELTA_BYTE_ARRAY" in columns[0].encodings
    by_default = io.BytesIO()
    pq.write_table(pa.table({"path": names, "image": files}), by_default, compression="zstd", compression_level=19)
    assert len(data) == parquet_bytes(names, files) < sum(map(len, files)) + 600 < by_default.tell() - 5000


def test_files_are_laid_out_in_whichever_way_is_smaller() -> None:
    draw = np.random.default_rng(1)
    # lengths that look like noise, and lengths that are said by what follows them
    for sizes in (draw.integers(100, 300, 500), np.full(500, 200)):
        table = pa.table({"path": ["a"] * 500, "image": [bytes([size % 251]) + draw.bytes(size) for size in sizes]})
        by_encoding = [len(_written(table, encoding)) for encoding in FILE_ENCODINGS]
        files = table["image"].to_pylist()
        assert parquet_bytes([b"a"] * 500, files) == min(by_encoding) < max(by_encoding)


# SSIMULACRA2

ROWS, COLUMNS = np.mgrid[0:45, 0:60]
PATTERN = np.stack([COLUMNS * 4, ROWS * 5, ROWS * COLUMNS % 256], axis=-1).astype(np.uint8)


def noisy(pixels: NDArray[np.uint8], amplitude: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(5).integers(-amplitude, amplitude + 1, pixels.shape)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)


def test_ssimulacra2_has_the_values_of_another_implementation() -> None:
    """Of the package ssimulacra2 0.3.0, with zeros for what is outside of a picture."""
    scores = [ssimulacra2(PATTERN, noisy(PATTERN, amplitude)) for amplitude in (2, 8, 30)]
    assert scores == pytest.approx([95.57991, 86.72091, 58.95378], abs=1e-4)
    assert ssimulacra2(PATTERN[:8, :9], noisy(PATTERN, 8)[:8, :9]) == pytest.approx(94.60612, abs=1e-4)
    assert ssimulacra2(PATTERN, PATTERN) == pytest.approx(100, abs=1e-6)
    assert ssimulacra2(PATTERN[:7], PATTERN[:7]) is None


# measuring


def test_each_contender_has_a_row_for_each_setting(compared: Comparison) -> None:
    count = {name: sum(row.contender == name for row in compared.rows) for name in CONTENDERS}
    assert count[SOURCE] == count[OWN_EXACT] == 1
    assert count[OWN_LOSSY] == 2
    assert all(count[name] == len(codecs.IMAGE_CODECS[name].settings) for name in FORMATS)
    assert (compared.images, compared.files, compared.sizes, compared.notes) == (12, 12, "42x42", ())


def test_the_source_is_charged_for_its_files(compared: Comparison, faces: Path) -> None:
    row = next(row for row in compared.rows if row.contender == SOURCE)
    assert row.loose_bytes == sum(path.stat().st_size for path in faces.iterdir()) / 12
    assert (row.jpeg_quality, row.quality) == (75, None)


def test_finer_settings_take_more_bytes_and_lose_less(compared: Comparison) -> None:
    for name in (*FORMATS, OWN_LOSSY):
        rows = compared.curve(name)
        assert [row.stored_bytes for row in rows] == sorted(row.stored_bytes for row in rows)
        psnr = [row.psnr_db or 0.0 for row in rows]
        assert psnr == sorted(psnr)
        assert all(-100 < (row.ssimulacra2 or -200) < 100 for row in rows)
        assert all(0 < (row.ssim or 0) <= 1 and (row.encode_per_s or 0) > 0 for row in rows)


def test_a_jpeg_is_estimated_at_the_quality_it_was_written_with(compared: Comparison) -> None:
    assert [row.jpeg_quality for row in compared.curve("jpeg")] == list(codecs.IMAGE_CODECS["jpeg"].ladder)
    assert all(row.jpeg_quality is None for row in compared.curve("webp"))


def test_exact_gives_the_files_back_in_fewer_bytes(compared: Comparison) -> None:
    row = next(row for row in compared.rows if row.contender == OWN_EXACT)
    assert row.quality is None
    # of so few files their own Parquet file is about as small: an archive has a fixed part
    assert row.stored_bytes < 0.7 * compared.source_bytes
    source = next(row for row in compared.rows if row.contender == SOURCE)
    assert compared.exact_ratios[SOURCE] == row.stored_bytes / source.stored_bytes


def test_json_holds_every_figure(compared: Comparison) -> None:
    found = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert len(found["rows"]) == len(compared.rows)
    assert set(found["equal_psnr"]) <= set(FORMATS)
    assert found["equal_psnr"]["webp"]["ratio"] == round(compared.equal("psnr_db")["webp"].ratio, 4)
    better = [row for row in found["rows"] if row["contender"] == "avif" and row["better_by_psnr"]]
    assert len(better) == len(compared.curve("avif"))
    exact = [row["contender"] for row in found["rows"] if row["exact"]]
    assert exact == [SOURCE, OWN_EXACT]


def test_the_table_says_what_it_comes_to(compared: Comparison) -> None:
    text = "\n".join(compared.lines())
    assert "12 of 12 files, 42x42" in text
    assert "at equal quality" in text
    assert "the very same files back" in text
    assert max(map(len, compared.lines(80))) <= 80
    narrow = compared.lines(60)
    end = next(i for i, line in enumerate(narrow) if line.startswith("not shown for want of room: "))
    assert max(map(len, narrow[2:end])) <= 60
    assert "stored B" in narrow[2]


def test_processes_measure_what_one_measures(faces: Path, compared: Comparison) -> None:
    found = compare(faces, CompareOptions(only=("webp",), device="cpu", cores=2))
    mine, theirs = ([(r.stored_bytes, r.psnr_db, r.ssim) for r in one.curve("webp")] for one in (found, compared))
    assert mine == theirs


def test_progress_comes_to_its_total(faces: Path) -> None:
    seen: list[Progress] = []
    options = CompareOptions(only=("webp", OWN_LOSSY), qualities=(60,), device="cpu", cores=1)
    compare(faces, options, seen.append)
    assert seen[-1].images == seen[-1].images_total == 12 * (len(codecs.IMAGE_CODECS["webp"].settings) + 1)


def test_a_limit_spreads_over_the_directory(faces: Path) -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 0) == spread(range(3), 9) == [0, 1, 2]
    found = few(faces, "jpeg", limit=5)
    assert (found.images, found.files) == (5, 12)


# what is odd


@pytest.fixture
def odd(faces: Path, tmp_path: Path) -> Path:
    """Two faces, a grey one of another size, and four files that are skipped."""
    directory = tmp_path / "odd"
    (directory / "deeper").mkdir(parents=True)
    for path in sorted(faces.iterdir())[:2]:
        shutil.copy(path, directory / "deeper")
    grey = np.random.default_rng(0).integers(90, 160, (30, 50), np.uint8)
    Image.fromarray(grey).save(directory / "grey.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 128)).save(directory / "alpha.png")
    (directory / "broken.jpg").write_bytes((directory / "grey.png").read_bytes()[:60])
    (directory / "notes.txt").write_text("no image")
    (directory / "gone.jpg").symlink_to(directory / "nowhere")
    return directory


def test_files_that_cannot_be_compared_are_skipped_and_counted(odd: Path) -> None:
    found = few(odd, SOURCE, *FORMATS, OWN_LOSSY, OWN_EXACT)
    assert (found.images, found.files, found.sizes, found.notes) == (3, 7, "42x30 to 50x42", ())
    assert sum(found.skipped.values()) == 4
    assert found.skipped["broken or circular link"] == found.skipped["alpha channel"] == 1
    assert all(f"skipped: 1 {reason}" in found.lines() for reason in found.skipped)


def test_a_directory_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UsageError, match=r"no images to compare \(1 not a JPEG"):
        few(tmp_path, "jpeg")


def test_contenders_that_are_missing_are_named_in_a_line_each(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setitem(sys.modules, "lepton_jpeg_python", None)
    found = few(faces, "mogrify", "jpeg-xl", "jpeg-xl-transcode", "lepton", "jpeg", limit=2)
    assert [note.split(":")[0] for note in found.notes] == ["mogrify", "jpeg-xl", "jpeg-xl-transcode", "lepton"]
    assert set(found.notes) <= set(found.lines())
    assert {row.contender for row in found.rows} == {"jpeg"}


def test_a_codec_that_fails_is_left_out(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, setting: codecs.Setting, pixels: object) -> bytes:
        raise ValueError("no such luck")

    monkeypatch.setattr(codecs, "warm_up", lambda: None)
    monkeypatch.setattr(codecs, "encode", refuse)
    found = few(faces, SOURCE, "webp", limit=2)
    assert [row.contender for row in found.rows] == [SOURCE]
    assert found.notes[0] == "webp q2: left out: face_00000.jpg: no such luck"


def test_mogrify_is_given_every_file(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "mogrify"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys; from pathlib import Path; from PIL import Image\n"
        "told = sys.argv[1:8]; assert told[:2] == ['-strip', '-quality'] and told[3:6] == ['-format', 'jpg', '-path']\n"
        "for path in map(Path, sys.argv[8:]):\n"
        "    Image.open(path).save(Path(told[6]) / f'{path.stem}.jpg', quality=int(told[2]))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(codecs, "FILES_PER_CALL", 5)
    monkeypatch.setitem(codecs.IMAGE_CODECS, "mogrify", codecs.Codec("JPEG", (20, 80), lambda setting, mode: {}))
    found = few(faces, "mogrify")
    assert [row.jpeg_quality for row in found.rows] == [20, 80]
    script.write_text("#!/bin/sh\necho 'out of ink' >&2\nexit 1\n")
    assert few(faces, "mogrify").notes[0] == "mogrify q20: left out: out of ink"


def test_jpeg_xl_keeps_the_very_same_files(faces: Path) -> None:
    pytest.importorskip("pillow_jxl")
    found = few(faces, "jpeg-xl-transcode", limit=3)
    assert found.rows[0].quality is None
    assert found.notes == ()


def test_lepton_keeps_the_very_same_files_in_fewer_bytes(odd: Path) -> None:
    pytest.importorskip("lepton_jpeg_python")
    found = few(odd, SOURCE, "lepton", OWN_EXACT)
    source, lepton, mine = found.rows
    assert lepton.quality is None
    assert lepton.loose_bytes
    assert source.loose_bytes
    assert lepton.loose_bytes < source.loose_bytes
    assert found.exact_ratios["lepton"] == mine.stored_bytes / lepton.stored_bytes
    assert found.notes == ("lepton: 1 files cannot be kept so, and count as they are",)


def test_avif_has_the_better_subsampling_at_each_quality(compared: Comparison) -> None:
    rows = [row for row in compared.rows if row.contender == "avif"]
    assert {row.variant for row in rows} == {"4:2:0", "4:4:4"}
    kept = compared.points("avif")
    for variant in ("4:2:0", "4:4:4"):
        alone = [Point(row.stored_bytes, row.psnr_db or 0.0) for row in rows if row.variant == variant]
        at = [point.quality for point in alone[1:-1]]
        assert np.all(log_bytes_at(kept, at) <= log_bytes_at(alone, at) + 0.01)
    shown = [line for line in compared.lines() if "4:2:0" in line or "4:4:4" in line]
    assert len(shown) == len(compared.curve("avif")) < len(rows)


def test_avif_tuned_for_the_eye_is_another_contender(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_has_tune_iq", lambda: False)
    assert few(faces, "jpeg", "avif-iq", limit=1).notes == ("avif-iq: this build of Pillow's AVIF has no tune=iq",)
    tuned = [codecs.IMAGE_CODECS[name].options(codecs.Setting(30, "4:4:4"), "RGB") for name in ("avif", "avif-iq")]
    assert [options["advanced"] for options in tuned] == [{"tune": "psnr"}, {"tune": "iq"}]
    assert all(options["subsampling"] == "4:4:4" for options in tuned)


# drawing


def test_the_sheet_shows_every_contender_at_about_equal_bytes(compared: Comparison) -> None:
    assert [panel.contender for panel in compared.panels] == [SOURCE, *FORMATS, OWN_LOSSY]
    mine = compared.panels[-1]
    assert mine.setting == "-q 75"
    for panel in compared.panels[1:]:
        assert len(panel.pixels) == 3
        assert panel.stored_bytes == pytest.approx(mine.stored_bytes, rel=0.25)
    with Image.open(io.BytesIO(charts.sheet(compared))) as image:
        assert image.format == "PNG"
        assert 6 * 42 * 4 < image.width < 2000
        assert 3 * 42 * 4 < image.height < 1000


def test_a_sheet_needs_panels(faces: Path) -> None:
    with pytest.raises(ValueError, match="panels"):
        charts.sheet(few(faces, "jpeg", limit=1))


def test_the_plot_is_a_png(compared: Comparison) -> None:
    pytest.importorskip("matplotlib")
    with Image.open(io.BytesIO(charts.plot(compared))) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert image.height > 500


# the command


def test_the_command_prints_the_table_and_writes_what_it_is_asked_for(faces: Path, tmp_path: Path) -> None:
    outputs = {option: tmp_path / f"{option}.png" for option in ("json", "plot", "sheet")}
    asked = [word for option, path in outputs.items() for word in (f"--{option}", path)]
    result = run(faces, "--only", "jpeg,zippy-batch", "--qualities", "60", "--device", "cpu", "--limit", 4, *asked)
    assert result.exit_code == 0, result.output
    assert "4 of 12 files" in result.stdout
    assert {row["contender"] for row in json.loads(outputs["json"].read_text())["rows"]} == {"jpeg", OWN_LOSSY}
    assert all(outputs[name].read_bytes().startswith(b"\x89PNG") for name in ("plot", "sheet"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--only", "gif"], "no contender 'gif'"),
        (["--only", "jpeg", "--skip", "jpeg"], "no contender is left"),
        (["--qualities", "40,high"], "expected numbers"),
        (["--qualities", "400"], "1 to 100"),
        (["--limit", "-3"], "limit must be 0 or more"),
        (["--model", "nowhere"], "nowhere"),
        (["--plot", "nowhere/plot.png"], "there is no directory nowhere"),
        (["--json", "."], "is a directory"),
        (["--sheet", "pyproject.toml"], "--overwrite"),
        (["--json", "a", "--plot", "a"], "named twice"),
    ],
)
def test_usage_errors_come_before_any_work(
    faces: Path, root: Path, args: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    result = run(faces, *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_wrong_path_is_a_usage_error(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not a directory" in result.stderr


def test_a_plot_without_matplotlib_says_what_to_install(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(faces, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 2
    assert result.stderr == "error: --plot needs matplotlib; pip install 'zippy-batch[compare]'\n"


def test_an_interruption_leaves_no_temporary_files(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(measure, "_take", interrupt)
    result = run(faces)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []
