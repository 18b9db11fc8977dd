"""An archive as a data set: what it gives is what restore writes, from any thread or process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import face_rows, info_for, mixed_rows
from test_archive import damage_column, directory_of_parts, flipped, overwritten, single_file

import zippy_batch as zb
from zippy_batch.archives.part_file import OpenFile
from zippy_batch.archives.schema import Row
from zippy_batch.dataset import Archive
from zippy_batch.run.encode_verified import build_codec

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["v3.parquet", "v3"])
def golden(request: pytest.FixtureRequest) -> Iterator[Archive]:
    with zb.open(GOLDEN / request.param, device="cpu") as archive:
        yield archive


def test_files_are_what_restore_writes(golden: Archive, tmp_path: Path) -> None:
    zb.restore(GOLDEN / "v3.parquet", tmp_path, workers=1, device="cpu")
    restored = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(golden.rows().files()) == restored
    assert golden["grey.jpg"].bytes() in restored


def test_pixels_by_path_number_and_batch_agree(golden: Archive) -> None:
    some = golden.rows(where="codec != 'raw'")
    assert len(some) == 18
    pixels = some.pixels
    for number, path, one in zip(some.numbers, some.paths, pixels, strict=True):
        assert golden[number].path == path
        assert golden[path].number == number
        assert one.dtype == np.uint8
        assert one.shape[:2] == (golden[path].row.height, golden[path].row.width)
    assert golden["exact-grey.jpg"].pixels.ndim == 2
    assert [batch.paths for batch in some.batches(7)] == [some.paths[:7], some.paths[7:14], some.paths[14:]]
    assert (some[3].pixels == pixels[3]).all()


def test_a_file_that_is_no_picture_says_so(golden: Archive) -> None:
    assert golden["notes.txt"].bytes() == b"not an image\n"
    with pytest.raises(zb.ArchiveError, match=r"notes\.txt was kept as it is"):
        golden["notes.txt"].pixels  # noqa: B018


def test_it_is_a_mapping_and_a_sequence(golden: Archive) -> None:
    assert len(golden) == len(golden.paths) == 20
    assert "tall.png" in golden
    assert "no such file" not in golden
    assert golden["caf\udce9.jpg"].number == 0
    assert golden[-1].path == golden.paths[-1] == "turned.jpg"
    assert [file.path for file in golden] == golden.paths
    assert golden[[3, 1]].paths == [golden.paths[3], golden.paths[1]]
    assert golden[18:].paths == golden.paths[18:]
    assert golden.rows(select="tail-*", where="source_bytes > 0").paths == [f"tail-{i}.jpg" for i in range(4)]
    for missing, error in (("x", KeyError), (20, IndexError), (-21, IndexError)):
        with pytest.raises(error):
            golden[missing]
    with pytest.raises(zb.UsageError, match="no column 'size'"):
        golden.rows().column("size")


def test_texts_for_people_are_short(golden: Archive) -> None:
    for one in (golden, golden.info, golden[0], golden[[1, 2]], golden.rows()):
        assert len(repr(one)) < 300
        assert "\n" not in repr(one)


def test_it_pickles_and_opens_again(golden: Archive) -> None:
    golden[5].bytes()
    other = pickle.loads(pickle.dumps(golden))
    assert len(pickle.dumps(golden)) < 1000
    assert other[5].bytes() == golden[5].bytes()


def test_threads_share_it(golden: Archive) -> None:
    expected = golden.rows().files()
    golden.close()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: golden[number % 20].bytes(), range(60)))
    assert found == expected * 3


@pytest.mark.parametrize("make", [single_file, directory_of_parts])
def test_every_row_is_found_by_number_and_by_path(make: Callable[..., Path], tmp_path: Path) -> None:
    shards = [replace(row, path=b"a/" + row.path) for row in mixed_rows(70)], face_rows(5000)
    with zb.open(make(tmp_path, *shards, info=info_for(70, 5000))) as archive:
        rows = [*shards[0], *shards[1]]
        for number in (*range(70), 70, 4095, 4165, 4166, 5069):
            assert archive[number].row == rows[number]
            found = archive[archive[number].path]
            assert found.row.path == rows[number].path
        assert [file.row for file in archive] == rows


def test_one_row_takes_one_page_of_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = face_rows(4000)
    read: list[int] = []
    read_range = OpenFile._read

    def counting(self: OpenFile, start: int, stop: int) -> bytes:
        read.append(stop - start)
        return read_range(self, start, stop)

    monkeypatch.setattr(OpenFile, "_read", counting)
    with zb.open(single_file(tmp_path, rows)) as archive:
        archive[2000]
        assert sum(read) < 200_000
        read.clear()
        archive[2001]
        assert sum(read) < 80_000


def test_a_damaged_byte_is_put_right_and_more_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = face_rows(50)
    path = single_file(tmp_path, rows)
    whole = path.read_bytes()
    at = whole.index(rows[7].payload)
    path.write_bytes(flipped(whole, 8 * at))
    assert zb.open(path)[7].row == rows[7]
    assert "put right" in caplog.text
    path.write_bytes(overwritten(whole, at))
    with zb.open(path) as archive:
        assert archive[6].row == rows[6]
        with pytest.raises(zb.DamagedRow, match="row 7"):
            archive[7]
    damage_column(path, 0, "path")
    with zb.open(path) as archive, pytest.raises(zb.ArchiveError, match="damaged"):
        archive.paths  # noqa: B018


def test_nothing_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(zb.UsageError, match="no archive"):
        zb.open(str(tmp_path / "missing.parquet"))


def test_rows_that_were_read_are_not_read_again(golden: Archive) -> None:
    batch = next(iter(golden.batches(5)))
    golden.close()
    assert isinstance(batch[2].row, Row)
    assert batch.column("codec")[2] == batch[2].codec


def test_decoding_takes_one_thread_and_gives_the_others_back(golden: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from zippy_batch.run import row_decoder, rows

    before, seen = torch.get_num_threads(), []
    decode = rows.decode_pictures

    def noting(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return decode(*arguments)

    monkeypatch.setattr(row_decoder, "decode_pictures", noting)
    torch.set_num_threads(2)
    try:
        golden["tall.png"].pixels  # noqa: B018
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_after_a_few_images_the_faster_arithmetic_is_taken_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[bool] = []

    def noted(*args: Any, few: bool) -> Any:
        built.append(few)
        return build_codec(args[0], args[1], few=few)

    monkeypatch.setattr("zippy_batch.run.row_decoder.build_codec", noted)
    with zb.open(GOLDEN / "v3.parquet", device="cpu") as archive:
        lossy = archive.rows("codec == 'latent'")
        alone = [file.bytes() for file in lossy]
        assert built == [True, False]
        assert lossy.files() == alone
        assert built == [True, False]
