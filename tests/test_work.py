from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import EXACT_MODEL, MODEL, POISON, FakeCodec, FakeExactCodec, pixels
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import write_part
from zippy_batch.codecs.latent.codec import LatentItem
from zippy_batch.config import ArchiveOptions, RestoreOptions
from zippy_batch.errors import ArchiveError, DamagedRow, SourceError, WorkerError
from zippy_batch.images.pixels import Facts, Picture
from zippy_batch.run.archive_shard import archive_shard, commit_part
from zippy_batch.run.encode_verified import Coders, code_batch
from zippy_batch.run.plan import Shard
from zippy_batch.run.report import Done
from zippy_batch.run.restore_shard import FileWriter, RestoreUnit, restore_shard
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.sources import Source
from zippy_batch.sources.directory import list_files

MODELS = {"latent": MODEL.id, "exact": EXACT_MODEL.id}
OPTIONS = ArchiveOptions(device="cpu", batch_size=4, exact="never")
NOISE = np.random.default_rng(0)


def ignore(done: Done) -> None:
    pass


def save(directory: Path, name: str, array: np.ndarray, **options: object) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Nine pictures of two sizes, and two files that are no pictures."""
    directory = tmp_path / "faces"
    for i in range(6):
        save(directory, f"{i}.jpg", pixels(i), quality=90)
    for i in range(3):
        save(directory, f"sub/{i}.png", pixels(i, 40, 40))
    (directory / "notes.txt").write_bytes(b"not a picture")
    (directory / "broken.jpg").write_bytes((directory / "0.jpg").read_bytes()[:300])
    return directory


def rows_of(
    directory: Path, options: ArchiveOptions = OPTIONS, codec: FakeCodec | None = None, threads: int = 1
) -> list[Row]:
    shard = Shard(0, list_files(directory).files[:])
    return archive_shard(
        shard, Source("files", directory), options, Coders(codec or FakeCodec()), OrderedThreadPool(threads), ignore
    )


def test_rows_come_in_path_order_one_for_each_file(faces: Path) -> None:
    rows = rows_of(faces)
    assert [row.path for row in rows] == sorted(file.path for file in list_files(faces).files)
    assert [row.path for row in rows if row.codec == "raw"] == [b"broken.jpg", b"notes.txt"]
    assert all(row.psnr is not None and row.psnr > 20 for row in rows if row.codec == "latent")


def test_raw_rows_hold_the_file_and_a_reason(faces: Path) -> None:
    rows = {row.path: row for row in rows_of(faces)}
    assert rows[b"notes.txt"].payload == b"not a picture"
    assert rows[b"broken.jpg"].raw_reason
    assert (rows[b"notes.txt"].psnr, rows[b"notes.txt"].quality) == (None, None)


def test_rows_do_not_depend_on_the_number_of_threads(faces: Path) -> None:
    assert rows_of(faces) == rows_of(faces, threads=3)


def test_batches_have_one_grid_and_the_asked_size(faces: Path) -> None:
    codec = FakeCodec()
    rows_of(faces, codec=codec)
    assert sorted(len(batch) for batch in codec.batches) == [2, 3, 4]


def test_every_row_is_told_once(faces: Path) -> None:
    told: list[Done] = []
    shard = Shard(0, list_files(faces).files[:])
    rows = archive_shard(shard, Source("files", faces), OPTIONS, Coders(FakeCodec()), OrderedThreadPool(2), told.append)
    assert sum(told, Done()) == Done(11, shard.source_bytes, sum(len(row.payload) for row in rows))


def test_without_verification_nothing_is_measured(faces: Path) -> None:
    rows = rows_of(faces, replace(OPTIONS, verify=False))
    assert {row.psnr for row in rows} == {None}


def test_strict_refuses_what_would_be_kept_raw(faces: Path) -> None:
    with pytest.raises(SourceError, match=r"broken\.jpg would be kept raw \(truncated\), which --strict forbids"):
        rows_of(faces, replace(OPTIONS, strict=True))


def test_a_file_that_changes_after_it_was_listed_stops_the_run(faces: Path) -> None:
    shard = Shard(0, list_files(faces).files[:])
    (faces / "3.jpg").write_bytes(b"something else")
    with pytest.raises(SourceError, match=r"3\.jpg"):
        archive_shard(shard, Source("files", faces), OPTIONS, Coders(FakeCodec()), OrderedThreadPool(1), ignore)


def test_a_picture_that_coding_makes_larger_is_kept_raw(tmp_path: Path) -> None:
    noise = NOISE.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    save(tmp_path, "noise.jpg", noise, quality=5)
    (row,) = rows_of(tmp_path, replace(OPTIONS, quality=100))
    assert (row.codec, row.raw_reason) == ("raw", "smaller as it is")
    assert row.payload == (tmp_path / "noise.jpg").read_bytes()
    assert (row.width, row.height, row.source_format) == (64, 64, "jpeg")


class BlindCodec(FakeCodec):
    """Decodes everything to black."""

    def decode_checked(self, items: Sequence[LatentItem]) -> tuple[list[NDArray[np.uint8]], dict[int, str]]:
        decoded, damage = super().decode_checked(items)
        return [np.zeros_like(one) for one in decoded], damage


def test_a_picture_that_the_model_cannot_represent_is_kept_raw(tmp_path: Path) -> None:
    save(tmp_path, "bright.png", pixels(1) // 4 + 190)
    (row,) = rows_of(tmp_path, codec=BlindCodec())
    assert (row.codec, row.raw_reason) == ("raw", "lossy quality too low (PSNR below 14 dB)")
    (row,) = rows_of(tmp_path, replace(OPTIONS, verify=False), codec=BlindCodec())
    assert row.codec == "latent"


# ---- the floor ----


def pictures(count: int) -> list[Picture]:
    return [Picture(pixels(i), Facts("png", "RGB", 24, 16)) for i in range(count)]


def test_floor_raises_only_who_is_below_it_and_no_more_than_needed() -> None:
    base = code_batch(pictures(4), 60, None, True, FakeCodec())
    psnrs = sorted(one.psnr or 0 for one in base)
    floor = (psnrs[1] + psnrs[2]) / 2
    codec = FakeCodec()
    found = code_batch(pictures(4), 60, floor, True, codec)
    for before, after in zip(base, found, strict=True):
        assert after.psnr is not None
        assert after.psnr >= floor
        assert (after == before) is (before.psnr is not None and before.psnr >= floor)
    raised = [i for i, one in enumerate(found) if one.quality > 60]
    for i in raised:
        below = code_batch(pictures(4), found[i].quality - 1, None, True, FakeCodec())[i]
        assert below.psnr is not None
        assert below.psnr < floor


def test_every_pass_of_the_search_encodes_the_whole_batch() -> None:
    codec = FakeCodec()
    code_batch(pictures(5), 60, 40.0, True, codec)
    assert {len(batch) for batch in codec.batches} == {5}
    assert len(codec.batches) <= 7


def test_floor_out_of_reach_keeps_the_picture_raw(faces: Path) -> None:
    rows = rows_of(faces, replace(OPTIONS, min_psnr=98.0))
    pictures_raw = [row for row in rows if row.raw_reason == "below --min-psnr 98 at every quality"]
    assert pictures_raw
    assert all(
        row.codec == "raw" and row.payload == (faces / os.fsdecode(row.path)).read_bytes() for row in pictures_raw
    )


def test_floor_holds_for_the_stored_psnr(faces: Path) -> None:
    rows = rows_of(faces, replace(OPTIONS, quality=50, min_psnr=33.3))
    assert all(row.psnr >= 33.3 for row in rows if row.psnr is not None)
    assert any(row.quality != 50 for row in rows if row.codec == "latent")


# ---- what goes wrong in the codec ----


def poisoned(place: int) -> list[Picture]:
    batch = pictures(4)
    batch[place].pixels[0, 0, 0] = POISON
    return batch


def test_a_picture_that_the_codec_fails_on_does_not_touch_its_neighbours() -> None:
    codec = FakeCodec(poison=POISON)
    found = code_batch(poisoned(2), 75, None, True, codec)
    expected = code_batch(poisoned(2), 75, None, True, FakeCodec())
    assert [one.failure for one in found] == [None, None, "the codec failed on it: poisoned", None]
    assert [found[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]
    assert len(codec.batches[-1]) == 4


def test_a_poisoned_picture_alone_in_its_batch_is_a_failure_too() -> None:
    (found,) = code_batch(poisoned(0)[:1], 75, 30.0, True, FakeCodec(poison=POISON))
    assert found.failure == "the codec failed on it: poisoned"


def test_a_codec_that_fails_on_everything_stops_the_run() -> None:
    batch = pictures(3)
    for picture in batch:
        picture.pixels[0, 0, 0] = POISON
    with pytest.raises(RuntimeError, match="poisoned"):
        code_batch(batch, 75, None, True, FakeCodec(poison=POISON))


class Exhausted(FakeCodec):
    def encode(self, images: object, qualities: object) -> list[bytes]:
        raise RuntimeError("CUDA out of memory")


def test_running_out_of_memory_is_not_the_picture_s_fault() -> None:
    with pytest.raises(WorkerError, match="smaller --batch-size"):
        code_batch(pictures(2), 75, None, True, Exhausted())


class Corrupting(FakeCodec):
    """Writes a payload that does not decode."""

    def encode(self, images: object, qualities: object) -> list[bytes]:
        payloads = super().encode(images, qualities)  # type: ignore[arg-type]
        return [payloads[0][:-4], *payloads[1:]]


def test_a_payload_that_does_not_decode_is_not_committed() -> None:
    first, second = code_batch(pictures(2), 75, None, True, Corrupting())
    assert first.failure is not None
    assert first.failure.startswith("its payload did not decode")
    assert second.failure is None


def test_a_part_that_does_not_read_back_is_not_committed(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(faces)
    payload = next(row.payload for row in rows if row.codec == "latent")

    def flip_a_bit(path: Path, rows: list[Row], info: ArchiveInfo) -> None:
        write_part(path, rows, info)
        data = bytearray(path.read_bytes())
        data[data.index(payload) + 3] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr("zippy_batch.run.archive_shard.write_part", flip_a_bit)
    part = tmp_path / "part-00000.parquet"
    with pytest.raises(WorkerError, match="does not read back"):
        commit_part(part, rows, ArchiveInfo(FORMAT_VERSION, MODELS, {}, (len(rows),)), verify=True)
    assert not part.exists()


# ---- restore ----


def write_archive(path: Path, rows: list[Row]) -> ArchiveReader:
    write_part(path, rows, ArchiveInfo(FORMAT_VERSION, MODELS, {}, (len(rows),)))
    return ArchiveReader.open(path)


def restored(archive: ArchiveReader, destination: Path, options: RestoreOptions, unit: RestoreUnit | None = None):  # type: ignore[no-untyped-def]
    temporary = destination / "new"
    temporary.mkdir(parents=True, exist_ok=True)
    writer = FileWriter(destination, temporary)
    return restore_shard(
        unit or RestoreUnit(0),
        archive,
        writer,
        options,
        Coders(FakeCodec(), FakeExactCodec()),
        OrderedThreadPool(1),
        ignore,
    )


def test_restore_brings_back_pixels_raw_bytes_and_times(faces: Path, tmp_path: Path) -> None:
    os.utime(faces / "0.jpg", (10**9, 10**9))
    rows = rows_of(faces, replace(OPTIONS, quality=95))
    result = restored(write_archive(tmp_path / "a.parquet", rows), tmp_path / "out", RestoreOptions(format="png"))
    assert result.line.images == 11
    assert result.line.raw_images == sum(row.codec == "raw" for row in rows)
    assert (tmp_path / "out/broken.jpg").read_bytes() == (faces / "broken.jpg").read_bytes()
    assert (tmp_path / "out/0.jpg.png").stat().st_mtime == 10**9
    with Image.open(faces / "0.jpg") as before, Image.open(tmp_path / "out/0.jpg.png") as after:
        assert np.abs(np.asarray(before, np.int64) - np.asarray(after, np.int64)).max() <= 3


def test_restore_takes_only_the_rows_wanted(faces: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.parquet", rows_of(faces))
    result = restored(archive, tmp_path / "out", RestoreOptions(), RestoreUnit(0, (0, 2)))
    assert result.line.images == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"new", "0.jpg", "2.jpg"}


def test_restore_measures_against_the_originals(faces: Path, tmp_path: Path) -> None:
    rows = rows_of(faces)
    (faces / "5.jpg").unlink()
    archive = write_archive(tmp_path / "a.parquet", rows)
    line = restored(archive, tmp_path / "out", RestoreOptions(reference=faces)).line
    kept = [row.psnr for row in rows if row.psnr is not None and row.path != b"5.jpg"]
    assert (line.quality.images, line.unmatched) == (len(kept), 1)
    assert line.quality.psnr_worst_db == pytest.approx(min(kept), abs=1 / 16)


def damaged_archive(faces: Path, path: Path) -> ArchiveReader:
    """With a payload of the first row that the codec does not take, under a checksum that is right."""
    rows = rows_of(faces)
    return write_archive(path, [replace(rows[0], payload=b"nonsense"), *rows[1:]])


def test_restore_stops_at_damage_and_names_it(faces: Path, tmp_path: Path) -> None:
    archive = damaged_archive(faces, tmp_path / "a.parquet")
    with pytest.raises(DamagedRow, match=r"shard 0, row 0: 0\.jpg: .*--keep-going"):
        restored(archive, tmp_path / "out", RestoreOptions())


def test_restore_that_keeps_going_brings_back_the_others(faces: Path, tmp_path: Path) -> None:
    archive = damaged_archive(faces, tmp_path / "a.parquet")
    line = restored(archive, tmp_path / "out", RestoreOptions(keep_going=True)).line
    assert (line.images, [finding.path for finding in line.damaged]) == (10, ["0.jpg"])
    assert not (tmp_path / "out/0.jpg").exists()


def test_a_row_whose_facts_are_nonsense_is_listed_as_damaged(faces: Path, tmp_path: Path) -> None:
    rows = rows_of(faces)
    made = write_archive(tmp_path / "a.parquet", [replace(rows[0], jpeg_tables=b"nonsense"), *rows[1:]])
    line = restored(made, tmp_path / "out", RestoreOptions(keep_going=True)).line
    assert (line.images, [finding.path for finding in line.damaged]) == (10, ["0.jpg"])
    with pytest.raises(DamagedRow, match="cannot be written as jpeg"):
        restored(made, tmp_path / "other", RestoreOptions())


def test_writer_does_not_follow_links_out_of_the_destination(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="through a link"):
        FileWriter(tmp_path / "out", tmp_path / "out").write(b"link/a.jpg", b"x", 0)
    with pytest.raises(ArchiveError, match="refused"):
        FileWriter(tmp_path / "out", tmp_path / "out").write(b"../a.jpg", b"x", 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- threads ----


@pytest.mark.parametrize("threads", [1, 3])
def test_hands_keep_order_and_do_not_run_far_ahead(threads: int) -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for i in range(40):
            pulled += 1
            yield i

    for taken, value in enumerate(OrderedThreadPool(threads).in_order(lambda i: i * i, items()), start=1):
        assert value == (taken - 1) ** 2
        assert pulled <= taken + threads + 1


def test_hands_work_side_by_side_and_pass_on_what_is_raised() -> None:
    meeting = threading.Barrier(2, timeout=10)
    assert list(OrderedThreadPool(2).in_order(lambda _: meeting.wait() >= 0, range(2))) == [True, True]
    failing: Callable[[int], float] = lambda i: 1 / (2 - i)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        list(OrderedThreadPool(2).in_order(failing, range(5)))


def test_jpegs_are_restored_with_their_own_tables(faces: Path, tmp_path: Path) -> None:
    restored(write_archive(tmp_path / "a.parquet", rows_of(faces)), tmp_path / "out", RestoreOptions())
    with Image.open(faces / "0.jpg") as before, Image.open(io.BytesIO((tmp_path / "out/0.jpg").read_bytes())) as after:
        assert before.quantization == after.quantization  # type: ignore[attr-defined]
