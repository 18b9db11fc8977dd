"""diff and dedupe: what differs between archives, and what is in one several times."""

from __future__ import annotations

import io
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rows import exact_row, face_rows, info_for, labelled, mixed_rows, raw_row, write_archive
from tiny import pictures, tiny_model
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.cli.app import app
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import UsageError
from zippy_batch.images.dhash import dhash, near_pairs
from zippy_batch.run.diff import Change
from zippy_batch.run.pipeline import archive

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


def picture(seed: int, size: int = 96) -> Image.Image:
    return Image.fromarray(pictures(1, size, size, seed)[0])


def as_bytes(image: Image.Image, format: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_pictures_that_were_scaled_or_coded_again_are_near(tmp_path: Path) -> None:
    one, other = picture(1), picture(2)
    files = {
        "a.png": as_bytes(one, "PNG"),
        "b.jpg": as_bytes(one, "JPEG", quality=40),
        "c.png": as_bytes(one.resize((40, 40), Image.Resampling.BOX), "PNG"),
        "d.png": as_bytes(other, "PNG"),
        "e.gif": as_bytes(one.convert("L"), "GIF"),
        "f.txt": b"notes",
        "g.txt": b"notes",
    }
    rows = [replace(raw_row(name.encode(), data), label=name[0]) for name, data in files.items()]
    write_archive(tmp_path / "a", rows, 3, ArchiveInfo(FORMAT_VERSION, {}, {}, ()))
    assert [group.paths for group in zb.dedupe(tmp_path / "a").groups] == [("f.txt", "g.txt")]
    report = zb.dedupe(tmp_path / "a", near=4)
    assert [group.paths for group in report.groups] == [("a.png", "b.jpg", "c.png", "e.gif"), ("f.txt", "g.txt")]
    assert report.groups[0].disagrees
    found = CliRunner().invoke(app, ["dedupe", str(tmp_path / "a"), "--report", "--near", "4", "--json"])
    assert (json.loads(found.stdout)["near_bits"], json.loads(found.stdout)["duplicates"]) == (4, 4)
    for wrong in (-1, 16):
        with pytest.raises(UsageError, match="near must be from 0 to 15 bits"):
            zb.dedupe(tmp_path / "a", near=wrong)


def test_coded_rows_are_decoded_to_be_compared(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "tiny.safetensors").write_bytes(tiny_model().data)
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        picture(seed, 40).save(tmp_path / "faces" / f"{name}.png", compress_level=ord(name) % 9)
    options = ArchiveOptions(model=str(tmp_path / "tiny.safetensors"), exact="never", verify=False, device="cpu")
    archive(tmp_path / "faces", tmp_path / "a.parquet", options, RunOptions(workers=1))
    [group] = zb.dedupe(tmp_path / "a.parquet", near=0).groups
    assert group.paths == ("a.png", "c.png")


@pytest.mark.parametrize("most_bits", [0, 1, 4, 15])
def test_all_near_pairs_are_found_and_no_others(most_bits: int) -> None:
    draw = random.Random(most_bits)
    hashes = {draw.getrandbits(64) for _ in range(60)}
    for one in list(hashes):
        hashes.add(one ^ sum(1 << bit for bit in draw.sample(range(64), draw.randrange(1, 18))))
    array = np.array(sorted(hashes), np.uint64)
    found = {tuple(sorted(pair)) for some in near_pairs(array, most_bits) for pair in zip(*some, strict=True)}
    pairs = itertools.combinations(range(len(array)), 2)
    assert found == {(i, j) for i, j in pairs if (int(array[i]) ^ int(array[j])).bit_count() <= most_bits}


def test_the_hash_of_a_picture_is_what_it_was(tmp_path: Path) -> None:
    """It says which fields are brighter than those to their left."""
    ramp = np.tile(np.arange(18, dtype=np.uint8) * 10, (16, 1))
    assert dhash(ramp) == 2**64 - 1
    assert dhash(ramp[:, ::-1]) == 0
    assert dhash(np.full((3, 2, 3), 7, np.uint8)) == 0
    ramp[2:4] = ramp[2:4, ::-1]
    assert dhash(ramp) == 0xFF00FFFFFFFFFFFF
