"""Damaged and crafted archives, restored: what is whole comes back, what is not is named, and the exit code is 1."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rows import info_for, raw_row

from zippy_batch.archives.part_file import open_file
from zippy_batch.archives.schema import Row
from zippy_batch.archives.writer import write_part
from zippy_batch.config import RestoreOptions, RunOptions
from zippy_batch.errors import ArchiveError, DamagedRow
from zippy_batch.run.pipeline import restore, verify
from zippy_batch.run.report import RestoreReport

GOLDEN = Path(__file__).parent / "golden" / "v3.parquet"
KEEP_GOING = RestoreOptions(keep_going=True, device="cpu")
HERE = RunOptions(workers=1, overwrite=True)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def overwritten(path: Path, at: int, size_bytes: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + size_bytes] = random.Random(at).randbytes(size_bytes)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the golden archive."""
    folder = tmp_path_factory.mktemp("whole")
    restore(GOLDEN, folder, RestoreOptions(device="cpu"), HERE)
    return files_below(folder)


def chunk(path: Path, column: str, group: int = 0) -> range:
    found = open_file(path).groups[group].chunks[column]
    return range(found.start, found.stop)


def test_one_flipped_bit_takes_no_file(tmp_path: Path, whole: Mapping[str, bytes]) -> None:
    draw = random.Random(1)
    size_bytes = GOLDEN.stat().st_size
    ends = [draw.randrange(8 * size_bytes) for _ in range(3)]
    in_columns = [
        8 * draw.choice(chunk(GOLDEN, name)) + draw.randrange(8) for name in ("path", "codec", "payload", "raw")
    ]
    for bit in (*ends, *in_columns):
        archive, output = tmp_path / "a.parquet", tmp_path / "out"
        shutil.copy(GOLDEN, archive)
        flipped(archive, bit)
        report = restore(archive, output, KEEP_GOING, HERE)
        assert report.exit_code == 1, bit
        assert report.total.damaged, bit
        assert files_below(output) == whole, bit
        assert verify(archive, run=HERE).exit_code == 1, bit
        shutil.rmtree(output)


@pytest.mark.parametrize(
    ("column", "wanted"), [("path", {"select": ("tail-*",)}), ("codec", {"where": "codec == 'exact'"})]
)
def test_a_selection_over_damage_names_it(tmp_path: Path, column: str, wanted: Mapping[str, object]) -> None:
    archive = tmp_path / "a.parquet"
    for group in range(4):
        shutil.copy(GOLDEN, archive)
        place = chunk(archive, column, group)
        flipped(archive, 8 * (place.stop - 2))
        options = replace(KEEP_GOING, **wanted)  # type: ignore[arg-type]
        expected = restore(GOLDEN, tmp_path / "whole", options, HERE)
        report = restore(archive, tmp_path / "out", options, HERE)
        assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
        named = [finding for finding in report.total.damaged if f"column {column} was damaged" in finding.what]
        assert report.total.images == expected.total.images
        if named:
            with pytest.raises(DamagedRow, match=f"column {column} was damaged"):
                restore(archive, tmp_path / "refused", replace(options, keep_going=False), HERE)
        shutil.rmtree(tmp_path / "out")


def test_lost_names_are_no_lost_pictures(tmp_path: Path, whole: Mapping[str, bytes]) -> None:
    archive = tmp_path / "a.parquet"
    shutil.copy(GOLDEN, archive)
    place = chunk(archive, "path")
    overwritten(archive, place.start + 40, len(place) - 50)
    report = restore(archive, tmp_path / "out", KEEP_GOING, HERE)
    assert report.exit_code == 1
    found = files_below(tmp_path / "out")
    assert sorted(found.values()) == sorted(whole.values())
    renamed = [name for name in found if name not in whole]
    assert len(renamed) == len(report.total.damaged) == 5
    assert all(name.startswith("damaged-names/part-00000-row-00000") for name in renamed)


def crafted(path: Path, *names: bytes) -> list[Row]:
    rows = [raw_row(name, b"file of %d" % i) for i, name in enumerate(names)]
    write_part(path, rows, info_for(len(rows)))
    return rows


def keep_going(archive: Path, output: Path) -> RestoreReport:
    report = restore(archive, output, KEEP_GOING, HERE)
    assert report.exit_code == 1
    return report


def test_bad_paths_are_renamed_and_named(tmp_path: Path) -> None:
    archive = tmp_path / "a.parquet"
    crafted(archive, b"../x.jpg", b"a", b"a", b"b", b"b/c", b"damaged-names/d", b"/etc/e", b"x" * 300)
    with pytest.raises(ArchiveError, match="refused to restore"):
        restore(archive, tmp_path / "refused", RestoreOptions(device="cpu"), HERE)
    report = keep_going(archive, tmp_path / "out")
    folder = "damaged-names_/part-00000-row-00000"
    assert files_below(tmp_path / "out") == {
        f"{folder}0.jpg": b"file of 0",
        "a": b"file of 1",
        f"{folder}2": b"file of 2",
        f"{folder}3": b"file of 3",
        "b/c": b"file of 4",
        "damaged-names/d": b"file of 5",
        f"{folder}6": b"file of 6",
        f"{folder}7": b"file of 7",
    }
    assert [finding.row for finding in sorted(report.total.damaged, key=lambda one: one.row or 0)] == [0, 2, 3, 6, 7]
    assert not (tmp_path / "x.jpg").exists()
    assert verify(archive, run=HERE).exit_code == 1
