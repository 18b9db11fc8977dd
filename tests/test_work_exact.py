"""Shards with exact rows: which files get one, and that they come back as the very same files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import EXACT_MODEL, MODEL, FakeCodec, FakeExactCodec, pixels
from numpy.typing import NDArray
from PIL import Image

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import write_part
from zippy_batch.codecs.exact.codec import ExactItem
from zippy_batch.config import ArchiveOptions, RestoreOptions, VerifyOptions
from zippy_batch.errors import DamagedRow, SourceError, WorkerError
from zippy_batch.jpeg.file import Coefficients, parse
from zippy_batch.run.archive_shard import archive_shard
from zippy_batch.run.encode_verified import Coders, code_files
from zippy_batch.run.plan import Shard
from zippy_batch.run.report import Done
from zippy_batch.run.restore_shard import FileWriter, RestoreUnit, ShardRestored, restore_shard
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.run.verify_shard import ShardVerified, VerifyJob, VerifyUnit, verify_shard
from zippy_batch.sources import Source
from zippy_batch.sources.directory import list_files

ALWAYS = ArchiveOptions(device="cpu", batch_size=4, exact="always")
AUTO = replace(ALWAYS, exact="auto")
NEVER = replace(ALWAYS, exact="never")


def ignore(done: Done) -> None:
    pass


def jpeg(picture: NDArray[np.uint8], **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Colour, grey and turned JPEG files of several sizes, one with data behind its end; and what is none."""
    directory = tmp_path / "faces"
    (directory / "sub").mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "0.jpg": jpeg(pixels(0, 48, 64), quality=90),
        "1.jpg": jpeg(pixels(1, 40, 40), quality=75),
        "grey.jpg": jpeg(pixels(2)[..., 0], quality=85),
        "sub/turned.jpg": jpeg(pixels(3, 48, 64), quality=90, exif=exif, comment="by hand"),
        "tail.jpg": jpeg(pixels(4), quality=90) + b"behind the end",
        "progressive.jpg": jpeg(pixels(5), quality=90, progressive=True),
        "notes.txt": b"not a picture",
        "empty": b"",
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    Image.fromarray(pixels(6)).save(directory / "a.png")
    return directory


def rows_of(
    directory: Path,
    options: ArchiveOptions,
    exact: FakeExactCodec | None = None,
    latent: FakeCodec | None = None,
    threads: int = 1,
) -> dict[bytes, Row]:
    coders = Coders(latent or FakeCodec(), exact or FakeExactCodec())
    shard = Shard(0, list_files(directory).files[:])
    rows = archive_shard(shard, Source("files", directory), options, coders, OrderedThreadPool(threads), ignore)
    assert [row.path for row in rows] == [file.path for file in shard.files]
    return {row.path: row for row in rows}


def restored(
    rows: Sequence[Row], directory: Path, options: RestoreOptions, coders: Coders | None = None
) -> ShardRestored:
    directory.mkdir(exist_ok=True)
    models = {"latent": MODEL.id, "exact": EXACT_MODEL.id}
    write_part(directory / "a.parquet", rows, ArchiveInfo(FORMAT_VERSION, models, {}, (len(rows),)))
    (directory / "out/new").mkdir(parents=True)
    writer = FileWriter(directory / "out", directory / "out/new")
    coders = coders or Coders(FakeCodec(), FakeExactCodec())
    with ArchiveReader.open(directory / "a.parquet") as archive:
        return restore_shard(RestoreUnit(0), archive, writer, options, coders, OrderedThreadPool(1), ignore)


# ---- which rows are exact ----


def test_with_exact_every_jpeg_that_can_be_rebuilt_is_exact(faces: Path) -> None:
    (faces / "arithmetic.jpg").write_bytes(jpeg(pixels(6)).replace(b"\xff\xc0", b"\xff\xc9"))
    rows = rows_of(faces, ALWAYS)
    assert {path: row.raw_reason for path, row in rows.items() if row.codec == "raw"} == {
        b"a.png": "not a JPEG",
        b"empty": "empty file",
        b"notes.txt": "not a JPEG",
        b"arithmetic.jpg": "arithmetic-coded JPEG",
    }
    exact = [row for row in rows.values() if row.codec == "exact"]
    assert len(exact) == 6
    assert {(row.quality, row.psnr, row.ssim, row.jpeg_tables, row.exif) for row in exact} == {(None,) * 5}
    assert (rows[b"grey.jpg"].mode, rows[b"grey.jpg"].grey) == ("L", True)
    facts = [(r.width, r.height, r.mode, r.source_format, r.jpeg_quality) for r in (rows[b"1.jpg"], rows[b"a.png"])]
    assert facts == [(40, 40, "RGB", "jpeg", 75), (24, 16, None, "png", None)]


def test_with_exact_the_lossy_codec_is_never_asked(faces: Path) -> None:
    latent = FakeCodec()
    rows_of(faces, ALWAYS, latent=latent)
    assert latent.batches == []


def test_strict_refuses_what_cannot_be_rebuilt(faces: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.png would be kept raw \(not a JPEG\), which --strict forbids"):
        rows_of(faces, replace(ALWAYS, strict=True))


@pytest.mark.parametrize("options", [ALWAYS, AUTO, NEVER])
def test_rows_do_not_depend_on_the_number_of_threads(faces: Path, options: ArchiveOptions) -> None:
    assert rows_of(faces, options) == rows_of(faces, options, threads=3)


def test_at_high_quality_exact_rows_are_taken_where_they_are_no_larger(faces: Path) -> None:
    rows = rows_of(faces, replace(AUTO, quality=100))
    lossy_only = rows_of(faces, replace(NEVER, quality=100))
    assert rows[b"0.jpg"].codec == "exact"
    assert lossy_only[b"0.jpg"].codec in ("latent", "raw")
    assert len(rows[b"0.jpg"].payload) <= len(lossy_only[b"0.jpg"].payload)
    assert rows[b"a.png"] == lossy_only[b"a.png"]


def test_where_lossy_payloads_are_small_the_exact_codec_is_not_tried(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (faces / "tail.jpg").unlink()
    tried, not_tried = FakeExactCodec(), FakeExactCodec()
    options = replace(AUTO, quality=40)
    rows = rows_of(faces, options, exact=tried)
    assert tried.batches
    assert rows[b"0.jpg"].codec == "latent"
    monkeypatch.setattr("zippy_batch.run.archive_shard.EXACT_SHARE", 5.0)
    assert rows_of(faces, options, exact=not_tried)[b"0.jpg"] == rows[b"0.jpg"]
    assert not_tried.batches == []


def test_what_misses_the_floor_is_exact_before_it_is_raw(faces: Path) -> None:
    floor = 98.9
    rows = rows_of(faces, replace(AUTO, quality=40, min_psnr=floor))
    lossy_only = rows_of(faces, replace(NEVER, quality=40, min_psnr=floor))
    below = [path for path, row in lossy_only.items() if (row.raw_reason or "").startswith("below --min-psnr")]
    assert b"0.jpg" in below
    assert {rows[path].codec for path in below if path.endswith(b".jpg")} <= {"exact", "raw"}
    assert rows[b"0.jpg"].codec == "exact"


def test_a_jpeg_that_is_no_sound_picture_is_exact_before_it_is_raw(faces: Path) -> None:
    assert rows_of(faces, AUTO)[b"tail.jpg"].codec == "exact"
    kept = rows_of(faces, NEVER)[b"tail.jpg"]
    assert (kept.codec, kept.raw_reason) == ("raw", "data after the end of the image")


def test_a_jpeg_that_coding_makes_larger_is_kept_raw(tmp_path: Path) -> None:
    class Wasteful(FakeExactCodec):
        def encode(self, images):  # type: ignore[no-untyped-def]
            return [payload + bytes(3000) for payload in super().encode(images)]

    (tmp_path / "0.jpg").write_bytes(jpeg(pixels(0)))
    for options in (ALWAYS, replace(AUTO, quality=100)):
        row = rows_of(tmp_path, options, exact=Wasteful())[b"0.jpg"]
        assert row.codec != "exact"
    assert rows_of(tmp_path, ALWAYS, exact=Wasteful())[b"0.jpg"].raw_reason == "smaller as it is"


# ---- faults ----


def test_a_file_that_the_codec_fails_on_is_kept_raw_and_its_neighbours_are_not(faces: Path) -> None:
    poison = int(parse((faces / "1.jpg").read_bytes()).coefficients[0].flat[0])
    rows = rows_of(faces, ALWAYS, exact=FakeExactCodec(poison=poison))
    assert (rows[b"1.jpg"].codec, rows[b"1.jpg"].raw_reason) == ("raw", "the codec failed on it (RuntimeError)")
    expected = rows_of(faces, ALWAYS)
    assert all(rows[path] == expected[path] for path in rows if path != b"1.jpg")


def test_a_codec_that_fails_on_everything_stops_the_run(faces: Path) -> None:
    class Broken(FakeExactCodec):
        def encode(self, images):  # type: ignore[no-untyped-def]
            raise RuntimeError("no device")

    with pytest.raises(WorkerError, match="fails on every file of a batch: no device"):
        rows_of(faces, ALWAYS, exact=Broken())


def test_a_machine_that_fails_decides_nothing(faces: Path) -> None:
    class Cramped(FakeExactCodec):
        def encode(self, images):  # type: ignore[no-untyped-def]
            raise RuntimeError("alloc_cpu.cpp: you tried to allocate memory: can't allocate memory")

    with pytest.raises(WorkerError, match="this machine failed while encoding"):
        rows_of(faces, ALWAYS, exact=Cramped())


def test_strict_refuses_what_does_not_come_back(faces: Path) -> None:
    for name in ("a.png", "notes.txt", "empty", "progressive.jpg"):
        (faces / name).unlink()
    rows_of(faces, replace(ALWAYS, strict=True))
    with pytest.raises(SourceError, match=r"would be kept raw \(its payload did not decode"):
        rows_of(faces, replace(ALWAYS, strict=True), exact=Forgetful())


class Forgetful(FakeExactCodec):
    """Decodes the first coefficient of every image wrongly."""

    def decode_checked(self, items: Sequence[ExactItem]) -> tuple[list[Coefficients], dict[int, str]]:
        decoded, damage = super().decode_checked(items)
        changed = [tuple(c.copy() for c in coefficients) for coefficients in decoded]
        for coefficients in changed:
            coefficients[0].flat[0] ^= 1
        return changed, damage


def test_a_file_that_does_not_come_back_is_kept_raw(faces: Path) -> None:
    rows = rows_of(faces, ALWAYS, exact=Forgetful())
    assert rows[b"0.jpg"].codec == "raw"
    assert rows[b"0.jpg"].raw_reason == "its payload did not decode: it comes back as another file"
    # without verification nobody looks
    assert rows_of(faces, replace(ALWAYS, verify=False), exact=Forgetful())[b"0.jpg"].codec == "exact"


def test_files_are_proved_from_their_payload(faces: Path) -> None:
    data = (faces / "0.jpg").read_bytes()
    (coded,) = code_files([(data, parse(data))], True, FakeExactCodec())
    assert coded.failure is None
    (coded,) = code_files([(data, parse(data))], True, Forgetful())
    assert coded.failure is not None


# ---- the way back ----


@pytest.mark.parametrize("options", [RestoreOptions(), RestoreOptions(format="png"), RestoreOptions(jpeg_quality=5)])
def test_restore_gives_the_very_same_files(faces: Path, tmp_path: Path, options: RestoreOptions) -> None:
    os.utime(faces / "0.jpg", (10**9, 10**9))
    rows = rows_of(faces, ALWAYS)
    line = restored(list(rows.values()), tmp_path / "back", options).line
    assert (line.images, line.exact_images, line.raw_images) == (9, 6, 3)
    assert line.restored_bytes == line.source_bytes
    for path in rows:
        assert (tmp_path / "back/out" / os.fsdecode(path)).read_bytes() == (faces / os.fsdecode(path)).read_bytes()
    assert (tmp_path / "back/out/0.jpg").stat().st_mtime == 10**9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payload": b"nonsense"}, "header check"),
        ({"jpeg_header": b"nonsense"}, "header: recipe version 110 is unknown"),
        ({"source_bytes": 900}, "it comes back with more than 900 bytes"),
        ({"source_bytes": 2_000}, "it comes back with .* bytes instead of 2000"),
        ({"width": 5}, "header: of a picture of .48, 64., 3 components; the row says .48, 5."),
        ({"grey": True}, "3 components"),
    ],
)
def test_damage_is_named_and_the_others_come_back(
    faces: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    rows = list(rows_of(faces, ALWAYS).values())
    rows[0] = replace(rows[0], **change)  # type: ignore[arg-type]
    with pytest.raises(DamagedRow, match=rf"shard 0, row 0: 0\.jpg: .*{reason}"):
        restored(rows, tmp_path / "stop", RestoreOptions())
    line = restored(rows, tmp_path / "go", RestoreOptions(keep_going=True)).line
    assert (line.images, [finding.path for finding in line.damaged]) == (8, ["0.jpg"])
    assert not (tmp_path / "go/out/0.jpg").exists()


def test_without_its_model_only_exact_rows_are_lost(faces: Path, tmp_path: Path) -> None:
    rows = list(rows_of(faces, replace(AUTO, quality=40)).values())
    assert {row.codec for row in rows} == {"latent", "exact", "raw"}
    line = restored(rows, tmp_path / "go", RestoreOptions(keep_going=True), Coders(FakeCodec(), None)).line
    assert {finding.path for finding in line.damaged} == {os.fsdecode(row.path) for row in rows if row.codec == "exact"}
    assert all("model that it needs" in finding.what for finding in line.damaged)


def verified(rows: Sequence[Row], tmp_path: Path, against: Path | None, deep: bool) -> ShardVerified:
    models = {"latent": MODEL.id, "exact": EXACT_MODEL.id}
    write_part(tmp_path / "v.parquet", rows, ArchiveInfo(FORMAT_VERSION, models, {}, (len(rows),)))
    source = Source("files", against) if against else None
    originals = {file.path: file for file in list_files(against).files} if against else {}
    job = VerifyJob(tmp_path / "v.parquet", source, VerifyOptions(deep=deep), "cpu", {}, lambda model, device: None)
    coders = Coders(FakeCodec(), FakeExactCodec())
    with ArchiveReader.open(tmp_path / "v.parquet") as archive:
        return verify_shard(VerifyUnit(0, originals), archive, job, coders, OrderedThreadPool(1), ignore)


def test_verify_compares_files_byte_by_byte(faces: Path, tmp_path: Path) -> None:
    rows = list(rows_of(faces, ALWAYS).values())
    found = verified(rows, tmp_path, faces, deep=False)
    assert (found.decoded, found.damaged, found.differing, found.unpromised) == (6, (), (), 0)
    changed = bytearray((faces / "0.jpg").read_bytes())
    changed[-20] ^= 1
    times = (faces / "0.jpg").stat()
    (faces / "0.jpg").write_bytes(changed)
    os.utime(faces / "0.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    found = verified(rows, tmp_path, faces, deep=False)
    assert [str(finding) for finding in found.differing] == [
        "shard 0, row 0: 0.jpg: the file's bytes are not those in the archive"
    ]


def test_deep_verification_decodes_exact_rows(faces: Path, tmp_path: Path) -> None:
    rows = list(rows_of(faces, ALWAYS).values())
    assert verified(rows, tmp_path, None, deep=True).damaged == ()
    rows[1] = replace(rows[1], payload=b"nonsense")
    assert [finding.path for finding in verified(rows, tmp_path, None, deep=True).damaged] == ["1.jpg"]
    assert verified(rows, tmp_path, None, deep=False).damaged == ()
