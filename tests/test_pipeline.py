from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import CODECS, MODEL, FakeCodec, files_of, make_faces
from PIL import Image
from tiny import tiny_exact_model, tiny_model

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import write_part
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions, VerifyOptions
from zippy_batch.errors import (
    ArchiveError,
    DamagedRow,
    ModelError,
    OutputExists,
    SourceError,
    StagingMismatch,
    UsageError,
)
from zippy_batch.run import executor
from zippy_batch.run.pipeline import Codecs, archive, restore, stats, verify
from zippy_batch.run.report import Progress
from zippy_batch.run.staging_local import staging_path

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
"""The 12 files of `make_faces` are 3 shards of 4."""
OVERWRITE = RunOptions(overwrite=True)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture(params=["out.parquet", "out"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A single file, and a directory of parts."""
    return tmp_path / request.param


def make(source: Path, output: Path, options: ArchiveOptions = OPTIONS, run: RunOptions | None = None, **more):  # type: ignore[no-untyped-def]
    return archive(source, output, options, run, codecs=CODECS, **more)


def back(path: Path, destination: Path, options: RestoreOptions | None = None, run: RunOptions | None = None, **more):  # type: ignore[no-untyped-def]
    return restore(path, destination, options or RestoreOptions(device="cpu"), run, codecs=CODECS, **more)


def check(path: Path, against: Path | None = None, deep: bool = False):  # type: ignore[no-untyped-def]
    return verify(path, against, VerifyOptions(deep=deep), codecs=CODECS)


# ---- archive ----


def test_everything_comes_back(faces: Path, output: Path, tmp_path: Path) -> None:
    report = make(faces, output)
    assert report.total.images == len(files_of(faces)) == 12
    assert len(report.shards) == 3
    assert not staging_path(output).exists()
    back(output, tmp_path / "back")
    restored = files_of(tmp_path / "back")
    for path, data in files_of(faces).items():
        if path.endswith(b".png"):
            assert path + b".jpg" in restored
        elif path.endswith(b".jpg") and path != b"broken.jpg":
            assert path in restored
        else:
            assert restored[path] == data
    assert len(restored) == 12


def test_same_input_makes_the_same_bytes(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    again = tmp_path / "again" / output.name
    again.parent.mkdir()
    shutil.copytree(faces, tmp_path / "copy")
    make(tmp_path / "copy", again, run=RunOptions(workers=1))
    assert content(again) == content(output)


def content(path: Path) -> dict[bytes, bytes]:
    return files_of(path) if path.is_dir() else {b"": path.read_bytes()}


@pytest.mark.usefixtures("ray_session")
def test_workers_on_ray_write_the_same_bytes(faces: Path, tmp_path: Path) -> None:
    make(faces, tmp_path / "one.parquet", run=RunOptions(workers=1))
    report = make(faces, tmp_path / "two.parquet", run=RunOptions(workers=2))
    assert report.run.workers == 2
    assert content(tmp_path / "two.parquet") == content(tmp_path / "one.parquet")
    restored = back(tmp_path / "two.parquet", tmp_path / "back", run=RunOptions(workers=2))
    assert restored.total.images == len(files_of(tmp_path / "back")) == 12


def test_report_is_what_the_archive_says(faces: Path, output: Path) -> None:
    made = make(faces, output)
    found = stats(output)
    assert found.run is None
    assert [replace(line, seconds=None) for line in made.shards] == list(found.shards)
    assert found.total == replace(made.total, seconds=None)
    assert found.total.archive_bytes == sum(len(data) for data in content(output).values())
    assert found.total.source_bytes == sum(len(data) for data in files_of(faces).values())
    assert sum(found.total.kept_raw.values()) == 3
    json.dumps(made.to_dict(), allow_nan=False)


def test_floor_is_met_and_counted(faces: Path, tmp_path: Path) -> None:
    plain = make(faces, tmp_path / "plain.parquet", replace(OPTIONS, quality=60))
    floor = plain.total.quality.psnr_mean_db
    report = make(faces, tmp_path / "floor.parquet", replace(OPTIONS, quality=60, min_psnr=floor))
    assert report.total.quality.psnr_worst_db >= floor
    assert report.floor.raised > 0
    assert report.floor.at_once + report.floor.raised + report.total.raw_images == 12


def test_progress_ends_at_the_totals(faces: Path, output: Path) -> None:
    told: list[Progress] = []
    make(faces, output, progress=told.append)
    assert (told[-1].images, told[-1].images_total, told[-1].shards, told[-1].shards_total) == (12, 12, 3, 3)
    assert told[-1].source_bytes == told[-1].source_bytes_total
    assert [p.images for p in told] == sorted(p.images for p in told)
    assert len(told) > 3


def test_archive_of_raw_files_alone_names_no_model(tmp_path: Path, output: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_bytes(b"text")
    report = make(tmp_path / "notes", output)
    assert report.models == {}
    restore(output, tmp_path / "back", codecs=Codecs(find=lambda _: None))
    assert files_of(tmp_path / "back") == {b"a.txt": b"text"}


def test_output_that_exists_is_left_alone(faces: Path, output: Path) -> None:
    make(faces, output)
    before = content(output)
    with pytest.raises(OutputExists, match="--overwrite"):
        make(faces, output, replace(OPTIONS, quality=50))
    assert content(output) == before
    make(faces, output, replace(OPTIONS, quality=50), OVERWRITE)
    assert stats(output).options["quality"] == 50


def test_overwrite_replaces_an_archive_of_another_writer(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent / "golden" / f"v{FORMAT_VERSION}", tmp_path / "out")
    assert make(faces, tmp_path / "out", run=OVERWRITE).total.images == 12


def test_overwrite_does_not_remove_a_directory_that_is_no_archive(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not an archive"):
        make(faces, tmp_path / "photos", run=OVERWRITE)
    assert (tmp_path / "photos/a.jpg").exists()


def test_output_inside_the_source_is_refused(faces: Path) -> None:
    with pytest.raises(UsageError, match="inside the source"):
        make(faces, faces / "out.parquet")
    with pytest.raises(UsageError, match="inside the output"):
        make(faces / "sub", faces)
    with pytest.raises(UsageError, match="no directory"):
        make(faces, faces.parent / "missing" / "out.parquet")


@pytest.mark.parametrize("name", [".", "..", "/", "sub/.."])
def test_output_without_a_name_is_refused(name: str, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(faces.parent)
    with pytest.raises(UsageError, match="names no file"):
        make(faces / "sub", Path(name), run=OVERWRITE)


def test_nothing_to_archive_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file in"):
        make(tmp_path / "empty", tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_single_file_of_too_many_shards_is_refused_before_anything_is_read(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zippy_batch.run.pipeline.MAX_GROUPS", 2)
    with pytest.raises(UsageError, match=r"3 row groups.*at most 2.*write a directory.*larger --shard-size"):
        make(faces, tmp_path / "out.parquet")
    assert not staging_path(tmp_path / "out.parquet").exists()
    assert make(faces, tmp_path / "out").total.images == 12
    assert make(faces, tmp_path / "out.parquet", replace(OPTIONS, shard_size=12)).total.images == 12


def test_a_larger_shard_is_not_advised_where_it_would_not_help(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zippy_batch.run.pipeline.MAX_GROUPS", 2)
    monkeypatch.setattr("zippy_batch.run.pipeline.MAX_ROWS_PER_GROUP", 4)
    with pytest.raises(UsageError, match=r"3 row groups.*does not end in \.parquet\)$"):
        make(faces, tmp_path / "out.parquet", replace(OPTIONS, shard_size=12))


def test_strict_run_that_failed_is_finished_by_a_lenient_one(faces: Path, output: Path) -> None:
    with pytest.raises(SourceError, match="--strict"):
        make(faces, output, replace(OPTIONS, strict=True))
    assert not output.exists()
    assert make(faces, output).run.shards_resumed == 1


def test_a_run_that_failed_before_its_first_shard_is_not_in_the_way(faces: Path, output: Path) -> None:
    with pytest.raises(SourceError):
        make(faces, output, replace(OPTIONS, strict=True, shard_size=0))
    make(faces, output, replace(OPTIONS, quality=50))


# ---- restore ----


def test_restore_refuses_to_overwrite_before_it_writes(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    (tmp_path / "back").mkdir()
    (tmp_path / "back/notes.txt").write_bytes(b"mine")
    with pytest.raises(OutputExists, match=r"1 of the files .*notes\.txt.*--overwrite"):
        back(output, tmp_path / "back")
    assert files_of(tmp_path / "back") == {b"notes.txt": b"mine"}
    back(output, tmp_path / "back", run=OVERWRITE)
    assert len(files_of(tmp_path / "back")) == 12


def lay_directory(at: Path) -> None:
    (at / "notes.txt").mkdir()


def lay_file(at: Path) -> None:
    (at / "sub").write_bytes(b"mine")


def lay_link(at: Path) -> None:
    (at.parent / "elsewhere").mkdir()
    (at / "sub").symlink_to(at.parent / "elsewhere")


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (lay_directory, r"notes\.txt is a directory"),
        (lay_file, "sub is no directory"),
        (lay_link, "sub .* leads out of it"),
    ],
)
def test_what_cannot_be_replaced_is_refused_before_anything_is_written(
    lay: Callable[[Path], None], message: str, faces: Path, output: Path, tmp_path: Path
) -> None:
    make(faces, output)
    (tmp_path / "back").mkdir()
    lay(tmp_path / "back")
    for run in (None, OVERWRITE):
        with pytest.raises(UsageError, match=message):
            back(output, tmp_path / "back", run=run)
    assert len(os.listdir(tmp_path / "back")) == 1
    assert not (tmp_path / "elsewhere/0.png.jpg").exists()


def test_a_reference_that_is_no_directory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-place: not a directory"):
        back(tmp_path / "out.parquet", tmp_path / "back", RestoreOptions(reference=tmp_path / "no-such-place"))
    assert not (tmp_path / "back").exists()


def test_restore_selects_by_glob(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    report = back(output, tmp_path / "back", RestoreOptions(device="cpu", select=("sub/*.png",), format="png"))
    assert set(files_of(tmp_path / "back")) == {b"sub/0.png", b"sub/1.png"}
    assert (report.selected, report.total.images) == (2, 2)
    with pytest.raises(UsageError, match="matches"):
        back(output, tmp_path / "other", RestoreOptions(device="cpu", select=("*.gif",)))


def test_restore_selects_by_a_condition(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    wanted = "source_format == 'png' and codec == 'latent'"
    report = back(output, tmp_path / "back", RestoreOptions(device="cpu", where=wanted, format="png"))
    pngs = {path for path in files_of(faces) if path.endswith(b".png")}
    assert set(files_of(tmp_path / "back")) == pngs
    assert pngs
    assert report.selected == len(pngs)
    both = RestoreOptions(device="cpu", where=wanted, select=("sub/*",), format="png")
    back(output, tmp_path / "both", both)
    assert set(files_of(tmp_path / "both")) == {path for path in pngs if path.startswith(b"sub/")}
    with pytest.raises(UsageError, match=r"no row of .* matches 'sub/\*' and 'psnr < 1'"):
        back(output, tmp_path / "other", replace(both, where="psnr < 1"))
    with pytest.raises(UsageError, match="no column 'colour'"):
        back(output, tmp_path / "other", RestoreOptions(device="cpu", where="colour == 1"))


def test_restore_that_was_interrupted_goes_on(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)

    def interrupt(progress: Progress) -> None:
        if progress.images > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back(output, tmp_path / "back", progress=interrupt)
    assert 0 < len(files_of(tmp_path / "back")) < 12
    back(output, tmp_path / "back")
    assert len(files_of(tmp_path / "back")) == 12
    with pytest.raises(OutputExists):
        back(output, tmp_path / "back")


def row(path: bytes, source_format: str | None = None) -> Row:
    picture = np.full((8, 8, 3), 50, np.uint8)
    raw = source_format is None
    payload = b"text" if raw else FakeCodec().encode([picture], [75])[0]
    size = None if raw else 8
    return Row(
        path, "raw" if raw else "latent", payload, "not a picture" if raw else None, size, size, None if raw else "RGB",
        False, None if raw else 75, 4, source_format, None, None, None, None, None, None, 0,
    )  # fmt: skip


def hand_made(path: Path, *rows: Row) -> Path:
    write_part(path, rows, ArchiveInfo(FORMAT_VERSION, {"latent": MODEL.id}, {}, (len(rows),)))
    return path


@pytest.mark.parametrize("path", [b"../a.txt", b"/etc/a.txt", b"a/../../b.txt"])
def test_restore_refuses_paths_that_leave_the_destination(path: bytes, tmp_path: Path) -> None:
    made = hand_made(tmp_path / "a.parquet", row(b"0.txt"), row(path))
    with pytest.raises(ArchiveError, match="refused"):
        back(made, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(b"z" * 252 + b".png", "png")],
            r"z\.png\.jpg: a name of 260 bytes, .* up to 255; another --format may",
        ),
        ([row(b"a.png", "png"), row(b"a.png.jpg", "jpeg")], r"two rows would be restored as a\.png\.jpg"),
        ([row(b"a"), row(b"a/b")], "as a file, and as a directory"),
    ],
)
def test_restore_refuses_targets_that_collide(rows: list[Row], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=message):
        back(hand_made(tmp_path / "a.parquet", *rows), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_restore_without_its_model_says_so(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    with pytest.raises(ModelError, match=f"needs the model {MODEL.id}"):
        restore(output, tmp_path / "back", codecs=Codecs(find=lambda _: None))
    kept_going = restore(output, tmp_path / "rest", RestoreOptions(keep_going=True), codecs=Codecs(find=lambda _: None))
    assert kept_going.exit_code == 1
    assert {name.decode() for name in files_of(tmp_path / "rest")} == {"notes.txt", "empty", "broken.jpg"}
    assert len(kept_going.total.damaged) == 9
    assert "model that it needs" in str(kept_going.total.damaged[0])


# ---- damage ----


def damage_first_payload(output: Path, size_bytes: int = 3) -> None:
    part = output / "part-00000.parquet" if output.is_dir() else output
    with ArchiveReader.open(output) as opened:
        first = next(row for row in opened.read_rows(0) if isinstance(row, Row) and row.codec == "latent")
    data = bytearray(part.read_bytes())
    at = data.index(first.payload) + 5
    data[at : at + size_bytes] = bytes(byte ^ 4 for byte in data[at : at + size_bytes])
    part.write_bytes(data)


def test_a_flipped_bit_is_named_and_put_right(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    back(output, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    damage_first_payload(output, size_bytes=1)
    report = check(output)
    assert report.exit_code == 1
    assert "one byte of column payload was damaged" in report.damaged[0].what
    with pytest.raises(DamagedRow, match="one byte of column payload was damaged"):
        back(output, tmp_path / "stopped")
    kept = back(output, tmp_path / "back", RestoreOptions(device="cpu", keep_going=True))
    assert (kept.exit_code, kept.total.images, len(kept.total.damaged)) == (1, 12, 1)
    assert files_of(tmp_path / "back") == whole


def test_verify_names_damage_and_restore_brings_back_the_rest(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output)
    assert check(output).exit_code == 0
    damage_first_payload(output)
    report = check(output)
    assert report.exit_code == 1
    assert [finding.path for finding in report.damaged] == ["0.jpg"]
    with pytest.raises(DamagedRow, match=r"0\.jpg"):
        back(output, tmp_path / "stopped")
    kept = back(output, tmp_path / "back", RestoreOptions(device="cpu", keep_going=True))
    assert (kept.exit_code, kept.total.images) == (1, 11)
    assert [finding.path for finding in kept.total.damaged] == ["0.jpg"]


def test_a_large_archive_is_verified_as_a_small_one_is(
    faces: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(faces, output)
    small = check(output)
    monkeypatch.setattr("zippy_batch.run.verify_shard.BULK_ROWS", 1)
    large = check(output)
    assert replace(large, run=None) == replace(small, run=None)
    damage_first_payload(output)
    assert [finding.path for finding in check(output).damaged] == ["0.jpg"]


def test_rows_beside_damaged_paths_come_back_and_overwrite_nothing(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zippy_batch.archives.writer.MAX_ROWS_PER_GROUP", 6)
    made = tmp_path / "out.parquet"
    make(faces, made, replace(OPTIONS, shard_size=0))
    chunk = pq.read_metadata(made).row_group(1).column(0)
    data = bytearray(made.read_bytes())
    at = chunk.data_page_offset
    data[at : at + 3] = bytes(byte ^ 0xFF for byte in data[at : at + 3])
    made.write_bytes(data)
    keep_going = RestoreOptions(device="cpu", keep_going=True)
    kept = back(made, tmp_path / "back", keep_going)
    assert (kept.exit_code, kept.total.images, len(kept.total.damaged)) == (1, 12, 6)
    assert len([name for name in files_of(tmp_path / "back") if name.startswith(b"damaged-names/")]) == 6
    with pytest.raises(OutputExists, match="12 of the files"):
        back(made, tmp_path / "back", keep_going)


def test_a_missing_part_is_reported_and_the_rest_comes_back(faces: Path, tmp_path: Path) -> None:
    make(faces, tmp_path / "out")
    (tmp_path / "out/part-00001.parquet").unlink()
    report = check(tmp_path / "out")
    assert report.exit_code == 1
    assert any("part-00001.parquet is missing" in problem for problem in report.problems)
    kept = back(tmp_path / "out", tmp_path / "back", RestoreOptions(device="cpu", keep_going=True))
    assert (kept.exit_code, kept.total.images, len(kept.total.damaged)) == (1, 8, 4)


# ---- verify against ----


def test_verify_against_the_originals(faces: Path, output: Path) -> None:
    make(faces, output)
    report = check(output, faces)
    assert (report.exit_code, report.rows, report.decoded) == (0, 12, 9)
    assert "holds everything" in report.lines()[-1]


def test_verify_against_finds_every_kind_of_difference(faces: Path, output: Path) -> None:
    make(faces, output)
    (faces / "new.jpg").write_bytes(b"new")
    (faces / "1.jpg").unlink()
    (faces / "notes.txt").write_bytes(b"not a pictura")
    (faces / "2.jpg").write_bytes((faces / "2.jpg").read_bytes() + b"\0")
    with Image.open(faces / "sub/0.png") as image:
        other = 255 - np.asarray(image)
    original_bytes = (faces / "sub/0.png").stat().st_size
    Image.fromarray(other).save(faces / "sub/0.png")
    padded = (faces / "sub/0.png").read_bytes()
    report = check(output, faces)
    assert [finding.path for finding in report.missing] == ["new.jpg"]
    assert [finding.path for finding in report.extra] == ["1.jpg"]
    differing = {finding.path: finding.what for finding in report.differing}
    assert "bytes are not those" in differing["notes.txt"]
    assert "archive says" in differing["2.jpg"]
    assert ("would have" if len(padded) == original_bytes else "archive says") in differing["sub/0.png"]
    assert report.exit_code == 1


def test_verify_against_finds_a_picture_of_lower_quality_than_promised(faces: Path, tmp_path: Path) -> None:
    make(faces, tmp_path / "out.parquet")
    with ArchiveReader.open(tmp_path / "out.parquet") as opened:
        rows = [row for shard in opened.shards() for row in opened.read_rows(shard) if isinstance(row, Row)]
    promised = [replace(row, psnr=row.psnr + 0.5) if row.path == b"3.jpg" else row for row in rows]  # type: ignore[operator]
    report = check(hand_made(tmp_path / "b.parquet", *promised), faces)
    assert [(finding.path, "archive promises" in finding.what) for finding in report.differing] == [("3.jpg", True)]


def test_verify_counts_rows_without_a_promise(faces: Path, output: Path) -> None:
    make(faces, output, replace(OPTIONS, verify=False))
    report = check(output, faces)
    assert (report.exit_code, report.unpromised) == (0, 9)


def test_deep_verification_decodes_every_payload(tmp_path: Path) -> None:
    made = hand_made(tmp_path / "a.parquet", row(b"0.jpg", "jpeg"), replace(row(b"1.jpg", "jpeg"), payload=b"nonsense"))
    assert check(made).exit_code == 0
    report = check(made, deep=True)
    assert (report.exit_code, report.decoded, [finding.path for finding in report.damaged]) == (1, 2, ["1.jpg"])


def test_names_that_are_not_utf8_come_back(tmp_path: Path, output: Path) -> None:
    (tmp_path / "odd").mkdir()
    name = os.path.join(os.fsencode(tmp_path / "odd"), b"caf\xe9.txt")
    try:
        Path(os.fsdecode(name)).write_bytes(b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    make(tmp_path / "odd", output)
    assert check(output, tmp_path / "odd").exit_code == 0
    back(output, tmp_path / "back")
    assert files_of(tmp_path / "back") == {b"caf\xe9.txt": b"text"}


def test_directories_whose_names_are_not_utf8_can_be_reported(faces: Path, output: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        faces.rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    make(odd, output)
    for report in (check(output, odd), back(output, tmp_path / os.fsdecode(b"b\xe4ck"))):
        "\n".join([*report.lines(), json.dumps(report.to_dict(), ensure_ascii=False)]).encode()
    with pytest.raises(UsageError, match=r"caf\\xe9/out.*UTF-8 paths only"):
        make(tmp_path, odd / output.name)


def test_workers_are_told_where_the_originals_are_from_anywhere(
    faces: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a cluster has another current directory."""
    make(faces, output)
    monkeypatch.chdir(tmp_path)

    def run_units(job, units, layout, *heard):  # type: ignore[no-untyped-def]
        monkeypatch.chdir("/")
        yield from executor.run_units(job, units, layout, *heard)
        monkeypatch.chdir(tmp_path)

    monkeypatch.setattr("zippy_batch.run.pipeline.run_units", run_units)
    assert check(Path(output.name), Path("faces")).exit_code == 0
    restored = back(Path(output.name), Path("back"), RestoreOptions(device="cpu", reference=Path("faces")))
    assert (restored.total.unmatched, restored.total.quality.images) == (0, 9)


def test_staging_of_another_run_is_told_apart(faces: Path, output: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.shards:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(faces, output, progress=interrupt)
    with pytest.raises(StagingMismatch, match=r"quality: 75 then, 50 now.*--overwrite"):
        make(faces, output, replace(OPTIONS, quality=50))
    (faces / "more.txt").write_bytes(b"more")
    with pytest.raises(StagingMismatch, match="files: 12 then, 13 now"):
        make(faces, output)
    assert make(faces, output, replace(OPTIONS, quality=50), OVERWRITE).total.images == 13
    assert not staging_path(output).exists()


# ---- with the real codec ----


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> ArchiveOptions:
    """Options with models that no version has built in."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.safetensors").write_bytes(tiny_model().data)
    (folder / "tiny-exact.safetensors").write_bytes(tiny_exact_model().data)
    paths = (str(folder / name) for name in ("tiny.safetensors", "tiny-exact.safetensors"))
    return ArchiveOptions(device="cpu", model=next(paths), exact_model=next(paths))


def test_a_model_of_one_s_own_travels_with_the_archive(
    drawn_faces: Path, model_files: ArchiveOptions, output: Path, tmp_path: Path
) -> None:
    report = archive(drawn_faces, output, replace(model_files, exact="never", shard_size=16))
    assert report.models == {"latent": tiny_model().id}
    assert report.total.raw_images < report.total.images == 40
    assert verify(output, drawn_faces).exit_code == 0
    restored = restore(output, tmp_path / "back", RestoreOptions(reference=drawn_faces))
    assert restored.total.quality.images == report.total.quality.images
    assert restored.total.quality.psnr_mean_db == pytest.approx(report.total.quality.psnr_mean_db, abs=0.05)


def test_models_of_both_codecs_travel_with_the_archive(
    drawn_faces: Path, model_files: ArchiveOptions, output: Path, tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    shutil.copytree(drawn_faces, faces)
    for name in ("a.jpg", "b.jpg"):
        (faces / name).write_bytes(next(faces.rglob("*.jpg")).read_bytes() + b"behind the end")
    report = archive(faces, output, replace(model_files, shard_size=16))
    assert report.models == {"exact": tiny_exact_model().id, "latent": tiny_model().id}
    assert report.total.exact_images >= 2
    assert report.total.lossy_images > 0
    assert verify(output, faces).exit_code == 0
    restored = restore(output, tmp_path / "back")
    assert restored.total.exact_images == report.total.exact_images
    assert (tmp_path / "back/a.jpg").read_bytes() == (faces / "a.jpg").read_bytes()


def test_every_byte_comes_back_with_exact(
    drawn_faces: Path, model_files: ArchiveOptions, output: Path, tmp_path: Path
) -> None:
    report = archive(drawn_faces, output, replace(model_files, exact="always"))
    assert report.models == {"exact": tiny_exact_model().id}
    assert (report.total.exact_images, report.total.lossy_images) == (40, 0)
    assert report.total.archive_bytes < report.total.source_bytes + len(tiny_exact_model().data)
    restore(output, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(drawn_faces)


def test_a_model_of_the_other_codec_is_refused(faces: Path, model_files: ArchiveOptions, tmp_path: Path) -> None:
    swapped = replace(model_files, model=model_files.exact_model)
    with pytest.raises(UsageError, match=r"--model .*tiny-exact.* is a model of the exact codec, not of the latent"):
        archive(faces, tmp_path / "out.parquet", swapped)
    swapped = replace(model_files, exact_model=model_files.model, exact="always")
    with pytest.raises(UsageError, match=r"--exact-model .* is a model of the latent codec, not of the exact"):
        archive(faces, tmp_path / "out.parquet", swapped)
    assert not staging_path(tmp_path / "out.parquet").exists()


def test_exact_rows_without_their_model(faces: Path, output: Path, tmp_path: Path) -> None:
    make(faces, output, replace(OPTIONS, exact="always"))
    lost = replace(CODECS, find=lambda _: None)
    with pytest.raises(ModelError, match="for its exact rows"):
        restore(output, tmp_path / "back", codecs=lost)
    report = restore(output, tmp_path / "back", RestoreOptions(keep_going=True), codecs=lost)
    assert report.exit_code == 1
    assert (report.total.images, report.total.raw_images) == (5, 5)
    assert len(report.total.damaged) == 7


def test_threads_and_process_write_the_same_bytes_with_the_real_codec(
    drawn_faces: Path, model_files: ArchiveOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(model_files, batch_size=7)
    for threads in (1, 3):
        monkeypatch.setattr("zippy_batch.run.executor.usable_cpus", lambda threads=threads: threads)
        archive(drawn_faces, tmp_path / f"{threads}.parquet", options, RunOptions(workers=1))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "3.parquet").read_bytes()


ALIKE = "exif_Landscape_"
"""Nine photographs of 2 megapixels that differ in their orientation alone, which other tests look at."""


@pytest.fixture(scope="module")
def odd(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of other projects' tests, and two of those that are alike."""
    folder = tmp_path_factory.mktemp("odd") / "odd"
    shutil.copytree(shared / "odd", folder, ignore=shutil.ignore_patterns(f"{ALIKE}[1-57-9]*"))
    return folder


@pytest.mark.parametrize(("exact", "name"), [("auto", "out"), ("always", "out.parquet"), ("never", "out")])
def test_odd_files_come_back(exact: str, name: str, odd: Path, tmp_path: Path) -> None:
    output = tmp_path / name
    report = make(odd, output, replace(OPTIONS, exact=exact, shard_size=0))
    assert report.total.images == len(files_of(odd))
    assert check(output, odd).exit_code == 0
    back(output, tmp_path / "back")
    with ArchiveReader.open(output) as opened:
        rows = [row for shard in opened.shards() for row in opened.read_rows(shard) if isinstance(row, Row)]
    restored = files_of(tmp_path / "back")
    assert len(restored) == len(rows) == report.total.images
    for row in rows:
        if row.codec != "latent":
            assert restored[row.path] == (odd / os.fsdecode(row.path)).read_bytes()


def test_odd_files_come_back_bit_for_bit_from_the_built_in_model(odd: Path, tmp_path: Path) -> None:
    archive(odd, tmp_path / "out.parquet", ArchiveOptions(exact="always", device="cpu"))
    restore(tmp_path / "out.parquet", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(odd)


@pytest.mark.parametrize("folder", ["celebF", "utk"])
def test_real_files_come_back_bit_for_bit_from_the_built_in_model(folder: str, shared: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted((shared / "faces/test" / folder).iterdir())[:40]:
        shutil.copyfile(path, source / path.name)
    report = archive(source, tmp_path / "out.parquet", ArchiveOptions(exact="always", device="cpu"))
    restore(tmp_path / "out.parquet", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)
    assert report.total.exact_images == 40
    assert report.total.archive_bytes < 0.6 * report.total.source_bytes
