"""Archives as files: what goes in comes out, tools read them, and damage is found, named and contained."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from rows import MODEL, MODELS, OPTIONS, face_rows, info_for, labelled, mixed_rows, raw_row

import zippy_batch.archives.description
import zippy_batch.archives.part_file
import zippy_batch.archives.reader
import zippy_batch.archives.writer
from zippy_batch.archives.checksums import group_crcs
from zippy_batch.archives.globs import compile_glob
from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, Damage, model_name
from zippy_batch.archives.part_file import PartWriter
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import COLUMNS, MAX_ROWS_PER_GROUP, METADATA_KEY, Row
from zippy_batch.archives.where import parse_condition
from zippy_batch.archives.writer import merge_parts, part_name, write_manifest, write_part
from zippy_batch.errors import ArchiveError, UsageError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Make = Callable[..., Path]


def single_file(directory: Path, *shards: list[Row], info: ArchiveInfo | None = None) -> Path:
    info = replace(info or info_for(), shards=tuple(len(rows) for rows in shards))
    parts = [directory / f"staged-{i}" for i in range(len(shards))]
    for part, rows in zip(parts, shards, strict=True):
        write_part(part, rows, info)
    output = directory / "out.parquet"
    merge_parts(parts, output, info)
    for part in parts:
        part.unlink()
    return output


def directory_of_parts(directory: Path, *shards: list[Row], info: ArchiveInfo | None = None) -> Path:
    info = replace(info or info_for(), shards=tuple(len(rows) for rows in shards))
    output = directory / "out"
    output.mkdir()
    for i, rows in enumerate(shards):
        write_part(output / part_name(i), rows, info)
    write_manifest(output, info)
    return output


@pytest.fixture(params=[single_file, directory_of_parts])
def make(request: pytest.FixtureRequest) -> Make:
    return cast(Make, request.param)


def read_all(path: Path) -> list[Row | Damage]:
    with ArchiveReader.open(path, allow_damage=True) as archive:
        return [row for shard in archive.shards() for row in archive.read_rows(shard)]


def damaged(found: list[Row | Damage]) -> list[Damage]:
    return [one for one in found if isinstance(one, Damage)]


def footer_bytes(data: bytes) -> int:
    return int.from_bytes(data[-8:-4], "little")


# ---- round trips ----


def test_rows_come_back_in_order(make: Make, tmp_path: Path) -> None:
    shards = mixed_rows(50), mixed_rows(7, seed=1), mixed_rows(1, seed=2)
    path = make(tmp_path, *shards)
    with ArchiveReader.open(path) as archive:
        assert [archive.read_rows(shard) for shard in archive.shards()] == list(shards)
        assert archive.row_count == 58
        assert archive.problems == ()
        assert archive.check_files() == []


def test_what_holds_for_all_rows_comes_back(make: Make, tmp_path: Path) -> None:
    info = info_for(3, 2, model_files={"latent": MODEL})
    with ArchiveReader.open(make(tmp_path, face_rows(3), face_rows(2), info=info)) as archive:
        assert archive.info == info


def test_archive_of_nothing_opens(make: Make, tmp_path: Path) -> None:
    with ArchiveReader.open(make(tmp_path, [])) as archive:
        assert archive.info.shards == (0,)
        assert archive.read_rows(0) == []
        assert archive.row_groups(0) == ()
        assert archive.select("*") == {}


def test_part_is_an_archive_by_itself(tmp_path: Path) -> None:
    rows = mixed_rows(20)
    write_part(tmp_path / "part", rows, info_for(20, 30))
    assert read_all(tmp_path / "part") == rows


def test_quality_is_stored_rounded_down(make: Make, tmp_path: Path) -> None:
    [row] = read_all(make(tmp_path, [replace(face_rows(1)[0], psnr=30.999, ssim=0.99999)]))
    assert isinstance(row, Row)
    assert (row.psnr, row.ssim) == (30.9375, 511 / 512)


def test_row_that_no_reader_would_accept_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quality 101"):
        write_part(tmp_path / "part", [replace(face_rows(1)[0], quality=101)], info_for(1))
    assert list(tmp_path.iterdir()) == []


def test_more_profiles_than_a_dictionary_holds_come_back(make: Make, tmp_path: Path) -> None:
    draw = random.Random(4)
    rows = [replace(row, icc=draw.randbytes(3000) if i % 3 else None) for i, row in enumerate(face_rows(900))]
    assert read_all(make(tmp_path, rows)) == rows


# ---- layout ----


def test_everything_but_the_payload_takes_at_most_16_bytes_a_row(tmp_path: Path) -> None:
    rows = face_rows(669)
    path = single_file(tmp_path, rows)
    overhead_bytes = path.stat().st_size - sum(len(row.payload) for row in rows)
    assert overhead_bytes / len(rows) <= 16


def test_equal_rows_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = make(tmp_path / name, mixed_rows(30), face_rows(5))
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]


def test_every_file_has_all_columns(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, face_rows(3), [raw_row(b"a", b"text")])
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        assert pq.read_schema(file).names == [column.name for column in COLUMNS]


def test_labels_come_back(make: Make, tmp_path: Path) -> None:
    shards = labelled(mixed_rows(20)), mixed_rows(3, seed=1)
    path = make(tmp_path, *shards)
    assert read_all(path) == [*shards[0], *shards[1]]
    with ArchiveReader.open(path) as archive:
        assert archive.read_columns(1, ["label"]) == {"label": [None] * 3}
    table = pq.read_table(path, columns=["label"])
    assert table["label"].to_pylist() == [row.label for rows in shards for row in rows]


def test_row_groups_hold_few_rows_of_one_shard_each(make: Make, tmp_path: Path) -> None:
    with ArchiveReader.open(make(tmp_path, face_rows(MAX_ROWS_PER_GROUP + 4), face_rows(5))) as archive:
        assert archive.row_groups(0) == (MAX_ROWS_PER_GROUP, 4)
        assert archive.row_groups(1) == (5,)
        assert len(archive.read_rows(0)) == MAX_ROWS_PER_GROUP + 4


def test_row_groups_hold_few_bytes(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "GROUP_BYTES", 1000)
    rows = [raw_row(f"{i}".encode(), bytes(size)) for i, size in enumerate((400, 400, 400, 5000, 10))]
    with ArchiveReader.open(make(tmp_path, rows)) as archive:
        assert archive.row_groups(0) == (2, 1, 1, 1)
        assert archive.read_rows(0) == rows


def test_sizes_are_known_without_reading_rows(make: Make, tmp_path: Path) -> None:
    shards = mixed_rows(40), face_rows(10)
    path = make(tmp_path, *shards)
    with ArchiveReader.open(path) as archive:
        payloads = [sum(len(row.payload) for row in rows if row.codec != "raw") for rows in shards]
        exact = [sum(len(row.payload) for row in rows if row.codec == "exact") for rows in shards]
        assert [archive.payload_bytes(shard) for shard in archive.shards()] == payloads
        assert [archive.exact_bytes(shard) for shard in archive.shards()] == exact
        assert exact[0] > 0
        by_shard = [archive.shard_bytes(shard) for shard in archive.shards()]
        assert all(stored > payload for stored, payload in zip(by_shard, payloads, strict=True))
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        assert archive.size_bytes == sum(file.stat().st_size for file in files) > sum(by_shard)


def test_too_many_row_groups_for_a_single_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "MAX_GROUPS", 2)
    with pytest.raises(UsageError, match=r"3 row groups.*at most 2.*directory"):
        single_file(tmp_path, *(face_rows(1) for _ in range(3)))


def test_merge_refuses_parts_of_other_sizes(tmp_path: Path) -> None:
    write_part(tmp_path / "part", face_rows(3), info_for(3))
    with pytest.raises(ArchiveError, match="instead of one of 4"):
        merge_parts([tmp_path / "part"], tmp_path / "out.parquet", info_for(4))
    with pytest.raises(ArchiveError, match="missing"):
        write_manifest(tmp_path, info_for(3))
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


# ---- reading some of it ----


def test_rows_are_read_by_position(make: Make, tmp_path: Path) -> None:
    rows = face_rows(MAX_ROWS_PER_GROUP + 100)
    with ArchiveReader.open(make(tmp_path, face_rows(3), rows)) as archive:
        wanted = [0, 7, MAX_ROWS_PER_GROUP - 1, MAX_ROWS_PER_GROUP, MAX_ROWS_PER_GROUP + 99]
        assert archive.read_rows(1, wanted) == [rows[row] for row in wanted]
        assert archive.read_rows(1, []) == []
        with pytest.raises(IndexError):
            archive.read_rows(0, [3])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.jpg", "b/a.jpg", "b/c/ä.png", "[x].jpg", "b/\udcff.jpg"]),
        ("*.jpg", ["a.jpg", "b/a.jpg", "[x].jpg", "b/\udcff.jpg"]),
        ("?.jpg", ["a.jpg", "b/a.jpg", "b/\udcff.jpg"]),
        ("b/*.jpg", ["b/a.jpg", "b/\udcff.jpg"]),
        ("b/*", ["b/a.jpg", "b/\udcff.jpg"]),
        ("b/**", ["b/a.jpg", "b/c/ä.png", "b/\udcff.jpg"]),
        ("**/c/*", ["b/c/ä.png"]),
        ("**/*.png", ["b/c/ä.png"]),
        ("/a.jpg", ["a.jpg"]),
        ("./a.jpg", ["a.jpg"]),
        ("[[]x].jpg", ["[x].jpg"]),
        ("[a-z].jpg", ["a.jpg", "b/a.jpg"]),
        ("[!a].jpg", ["b/\udcff.jpg"]),
        ("[\\]x", []),
        ("[", []),
        ("[]]", []),
        ("*a*", ["a.jpg", "b/a.jpg"]),
        ("**/**/a.*", ["a.jpg", "b/a.jpg"]),
        ("b/**/**/ä.png", ["b/c/ä.png"]),
        ("c/ä.png", []),
        ("a.jpg/", ["a.jpg", "b/a.jpg"]),
        ("a.jpg/**", []),
        ("a.jp(g|x)", []),
        ("nothing", []),
    ],
)
def test_select_by_glob(make: Make, tmp_path: Path, pattern: str, expected: list[str]) -> None:
    names = ["a.jpg", "b/a.jpg", "b/c/ä.png", "[x].jpg", "b/\udcff.jpg"]
    rows = [replace(face_rows(1)[0], path=name.encode(errors="surrogateescape")) for name in names]
    with ArchiveReader.open(make(tmp_path, rows[:2], rows[2:])) as archive:
        places = archive.select(pattern)
        found = [row for shard, some in places.items() for row in archive.read_rows(shard, some)]
    assert [row.path.decode(errors="surrogateescape") for row in found if isinstance(row, Row)] == expected


@pytest.mark.parametrize(("pattern", "message"), [("", "empty"), ("[z-a]", "malformed")])
def test_glob_that_means_nothing_is_a_mistake(tmp_path: Path, pattern: str, message: str) -> None:
    with ArchiveReader.open(single_file(tmp_path, face_rows(1))) as archive, pytest.raises(UsageError, match=message):
        archive.select(pattern)


@pytest.mark.parametrize("pattern", ["*_*_*_*_*_*_x", "**/a/**/a/**/a/**/x"])
def test_long_path_does_not_stall_a_glob(pattern: str) -> None:
    path = b"_" * 60_000 if "_" in pattern else b"a/" * 2_000 + b"a"
    assert not compile_glob(pattern)(path)


def test_columns_are_read_without_touching_others(make: Make, tmp_path: Path) -> None:
    rows = mixed_rows(30)
    path = make(tmp_path, rows)
    with ArchiveReader.open(path) as archive:
        columns = archive.read_columns(0, ("codec", "width", "raw_reason", "psnr", "exif"))
    assert columns["codec"] == [row.codec for row in rows]
    assert columns["raw_reason"] == [row.raw_reason for row in rows]
    assert columns["psnr"] == [row.psnr for row in rows]
    assert columns["exif"] == [row.exif for row in rows]
    file = path / part_name(0) if path.is_dir() else path
    chunks = pq.read_metadata(file).row_group(0)
    payload = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "payload")
    data = bytearray(file.read_bytes())
    data[payload.data_page_offset :][: payload.total_compressed_size] = bytes(payload.total_compressed_size)
    start = payload.data_page_offset
    data[start : start + payload.total_compressed_size] = bytes(payload.total_compressed_size)
    file.write_bytes(data)
    with ArchiveReader.open(path) as archive:
        assert archive.read_columns(0, columns) == columns


def test_column_of_nothing_is_all_null(tmp_path: Path) -> None:
    with ArchiveReader.open(single_file(tmp_path, face_rows(3))) as archive:
        assert archive.read_columns(0, ("exif", "grey")) == {"exif": [None] * 3, "grey": [False] * 3}


# ---- other tools ----


def tool_rows(path: Path) -> tuple[str, list[Row]]:
    rows = mixed_rows(40)
    return str(path / "*.parquet" if path.is_dir() else path), rows


def test_duckdb_reads_it(make: Make, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    pattern, rows = tool_rows(make(tmp_path, mixed_rows(40)))
    query = "select path, payload, raw, psnr, grey, source_bytes, crc, mtime_s from read_parquet(?)"
    found = duckdb.execute(query, [pattern]).fetchall()
    assert [(bytes(payload) if raw is None else bytes(raw)) for _, payload, raw, *_ in found] == [
        r.payload for r in rows
    ]
    assert [row[3] for row in found] == [row.psnr for row in rows]
    [(mean, total)] = duckdb.execute("select avg(psnr), sum(source_bytes) from read_parquet(?)", [pattern]).fetchall()
    assert total == sum(row.source_bytes for row in rows)
    assert 20 < mean < 40


def test_polars_reads_it(make: Make, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    pattern, rows = tool_rows(make(tmp_path, mixed_rows(40)))
    frame = polars.read_parquet(pattern)
    assert frame["source_bytes"].to_list() == [row.source_bytes for row in rows]
    assert frame["psnr"].to_list() == [row.psnr for row in rows]
    coded = [row.payload for row in rows if row.codec == "latent"]
    assert frame.filter(polars.col("codec") == "latent")["payload"].to_list() == coded


def test_pandas_reads_it(make: Make, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = make(tmp_path, mixed_rows(40))
    rows = mixed_rows(40)
    frame = pandas.read_parquet(path)
    assert frame["quality"].fillna(0).tolist() == [row.quality or 0 for row in rows]
    assert frame["path"].tolist() == [row.path.decode(errors="backslashreplace") for row in rows]


def test_pyarrow_reads_it(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, mixed_rows(40))
    table = pq.read_table(path)
    assert table["exif"].to_pylist() == [row.exif for row in mixed_rows(40)]
    assert METADATA_KEY.encode() in table.schema.metadata


# ---- damage ----


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def overwritten(data: bytes, at: int, size_bytes: int = 3) -> bytes:
    """More damage than can be put right."""
    return data[:at] + bytes(byte ^ 0xA5 for byte in data[at : at + size_bytes]) + data[at + size_bytes :]


def test_any_flipped_bit_is_named_and_costs_nothing(tmp_path: Path) -> None:
    rows = mixed_rows(24)
    path = single_file(tmp_path, rows[:16], rows[16:], info=info_for(16, 8, model_files={"latent": MODEL}))
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 1013):
        path.write_bytes(flipped(data, bit))
        with ArchiveReader.open(path, allow_damage=True) as archive:
            found = [row for shard in archive.shards() for row in archive.read_rows(shard)]
            assert [row.rest if isinstance(row, Damage) else row for row in found] == rows, bit
            assert len(archive.problems) + len(damaged(found)) >= 1, bit
            assert archive.info.model_files["latent"] == MODEL


def test_any_changed_byte_of_a_directory_is_named_and_costs_nothing(tmp_path: Path) -> None:
    rows = mixed_rows(12)
    path = directory_of_parts(tmp_path, rows[:6], rows[6:], info=info_for(6, 6, model_files={"exact": MODEL}))
    draw = random.Random(6)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for _ in range(12):
            at = draw.randrange(len(data))
            file.write_bytes(data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :])
            with ArchiveReader.open(path, allow_damage=True) as archive:
                found = [row for shard in archive.shards() for row in archive.read_rows(shard)]
                assert [row.rest if isinstance(row, Damage) else row for row in found] == rows, (file, at)
                assert len(archive.problems) + len(damaged(found)) >= 1, (file, at)
                assert archive.info.model_files["exact"] == MODEL
        file.write_bytes(data)


def test_a_column_that_is_damaged_costs_only_the_rows_that_need_it(tmp_path: Path) -> None:
    rows = face_rows(60)
    path = single_file(tmp_path, rows)
    whole = path.read_bytes()
    for name, kept in (("psnr", True), ("crc", True), ("mtime_s", True), ("path", True), ("width", False)):
        path.write_bytes(whole)
        damage_column(path, 0, name)
        found = damaged(read_all(path))
        assert len(found) == 60
        assert all((damage.rest is not None) == kept for damage in found), name
        if kept and name != "path":
            assert [damage.rest.payload for damage in found if damage.rest] == [row.payload for row in rows]
            assert [damage.path for damage in found] == [row.path for row in rows]


def test_a_lost_name_is_no_lost_picture(tmp_path: Path) -> None:
    rows = face_rows(6)
    path = single_file(tmp_path, rows)
    damage_column(path, 0, "path")
    found = damaged(read_all(path))
    assert [damage.path for damage in found] == [None] * 6
    assert [damage.rest.path for damage in found if damage.rest] == [
        b"damaged-names/part-00000-row-%06d.jpg" % i for i in range(6)
    ]


def test_damage_to_a_payload_is_named_and_costs_one_row(tmp_path: Path) -> None:
    rows = face_rows(60)
    path = single_file(tmp_path, rows)
    data = path.read_bytes()
    draw = random.Random(0)
    for place, row in enumerate(rows):
        at = data.index(row.payload)
        path.write_bytes(overwritten(data, at + draw.randrange(len(row.payload) - 3)))
        found = read_all(path)
        [damage] = damaged(found)
        assert (damage.shard, damage.row, damage.path, damage.rest) == (0, place, row.path, None)
        assert f"row {place} ({row.path.decode()})" in str(damage)
        assert [*found[:place], row, *found[place + 1 :]] == rows


def test_damage_to_kept_files_spares_what_is_in_other_pages(tmp_path: Path) -> None:
    draw = random.Random(1)
    kept = [raw_row(f"raw {i}".encode(), draw.randbytes(100_000)) for i in range(6)]
    rows = [*kept, *face_rows(20)]
    path = single_file(tmp_path, rows)
    data = path.read_bytes()
    for place, row in enumerate(kept):
        at = data.index(row.payload[50_000:50_100])
        path.write_bytes(overwritten(data, at))
        found = read_all(path)
        assert [damage.path for damage in damaged(found)] == [row.path]
        assert [*found[:place], row, *found[place + 1 :]] == rows


def test_damage_to_a_column_spares_rows_that_have_nothing_there(tmp_path: Path) -> None:
    rows = [replace(row, icc=b"profile" * 50 if i == 3 else None) for i, row in enumerate(face_rows(10))]
    path = single_file(tmp_path, rows)
    chunks = pq.read_metadata(path).row_group(0)
    icc = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "icc")
    path.write_bytes(overwritten(path.read_bytes(), icc.dictionary_page_offset))
    found = read_all(path)
    [damage] = damaged(found)
    assert (damage.row, damage.path) == (3, rows[3].path)
    assert "column icc" in damage.reason


def damage_column(path: Path, group: int, name: str) -> None:
    """Make a column of a row group unreadable."""
    chunks = pq.read_metadata(path).row_group(group)
    chunk = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == name)
    path.write_bytes(overwritten(path.read_bytes(), chunk.data_page_offset))


def test_damaged_paths_of_one_row_group_hide_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "MAX_ROWS_PER_GROUP", 4)
    rows = face_rows(10)
    path = single_file(tmp_path, rows)
    damage_column(path, 1, "path")
    with ArchiveReader.open(path) as archive:
        assert archive.paths(0) == [None if 4 <= i < 8 else row.path for i, row in enumerate(rows)]
        assert archive.select("000001.jpg") == {0: [0, 4, 5, 6, 7]}


def test_a_condition_on_a_damaged_column_passes_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "MAX_ROWS_PER_GROUP", 4)
    path = single_file(tmp_path, [replace(row, quality=10 + i) for i, row in enumerate(face_rows(10))])
    condition = parse_condition("quality >= 18")
    with ArchiveReader.open(path) as archive:
        assert archive.where(condition) == {0: [8, 9]}
    damage_column(path, 1, "quality")
    with ArchiveReader.open(path) as archive:
        assert archive.where(condition) == {0: [4, 5, 6, 7, 8, 9]}


def test_rows_that_come_back_have_a_path_whatever_is_damaged(tmp_path: Path) -> None:
    rows = [replace(row, path=b"caf\xe9" if i == 3 else row.path) for i, row in enumerate(face_rows(6))]
    path = single_file(tmp_path, rows)
    damage_column(path, 0, "path_bytes")
    with ArchiveReader.open(path) as archive:
        found = archive.read_rows(0)
        assert [row.path for row in found if isinstance(row, Row)] == [row.path for row in rows if row != rows[3]]
        assert archive.paths(0) == [row.path if isinstance(row, Row) else None for row in found]


def test_any_damage_is_found_or_harmless(tmp_path: Path) -> None:
    rows = mixed_rows(24)
    path = single_file(tmp_path, rows[:16], rows[16:])
    data = path.read_bytes()
    draw = random.Random(2)
    for _ in range(200):
        path.write_bytes(overwritten(data, draw.randrange(len(data)), draw.choice([2, 4, 50])))
        try:
            found = read_all(path)
        except ArchiveError:
            continue
        for row, one in zip(rows, found, strict=True):
            assert isinstance(one, Damage) or one == row


def test_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = single_file(tmp_path, mixed_rows(10))
    data = path.read_bytes()
    for size_bytes in [*range(20), *range(20, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size_bytes])
        with pytest.raises(ArchiveError, match=r"out\.parquet"):
            ArchiveReader.open(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError, match="truncated"):
        ArchiveReader.open(path)


def test_damaged_description_is_found(tmp_path: Path) -> None:
    path = single_file(tmp_path, face_rows(2))
    path.write_bytes(path.read_bytes().replace(b'"quality":75', b'"quality":98'))
    with pytest.raises(ArchiveError, match="footer is damaged in more than one byte"):
        ArchiveReader.open(path)


def test_damaged_model_is_found(make: Make, tmp_path: Path) -> None:
    info = info_for(2, model_files={"latent": MODEL})
    path = make(tmp_path, face_rows(2), info=info)
    file = path / model_name("latent") if path.is_dir() else path
    file.write_bytes(file.read_bytes().replace(MODEL, MODEL.upper()))
    with pytest.raises(ArchiveError, match=r"model in .* is damaged"):
        ArchiveReader.open(path)
    with ArchiveReader.open(path, allow_damage=True) as archive:
        assert len(archive.problems) == 1
        assert "latent" not in archive.info.model_files
        assert damaged(archive.read_rows(0)) == []


# ---- damage to directories ----


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return directory_of_parts(tmp_path, face_rows(3), face_rows(4, seed=1), face_rows(5, seed=2))


def test_missing_part_costs_its_rows(directory: Path) -> None:
    (directory / part_name(1)).unlink()
    with pytest.raises(ArchiveError, match=r"part-00001\.parquet is missing"):
        ArchiveReader.open(directory)
    with ArchiveReader.open(directory, allow_damage=True) as archive:
        assert len(archive.problems) == 1
        assert [len(damaged(archive.read_rows(shard))) for shard in archive.shards()] == [0, 4, 0]
        assert archive.select("000001.jpg") == {0: [0], 1: [0, 1, 2, 3], 2: [0]}
        with pytest.raises(ArchiveError, match="missing"):
            archive.read_columns(1, ["codec"])


def test_truncated_part_costs_its_rows(directory: Path) -> None:
    part = directory / part_name(2)
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match=r"part-00002.parquet has \d+ bytes instead of"):
        ArchiveReader.open(directory)
    found = read_all(directory)
    assert len(damaged(found)) == 5
    assert found[:3] == face_rows(3)


def test_part_too_many_is_found(directory: Path) -> None:
    (directory / "part-00003.parquet").write_bytes((directory / part_name(0)).read_bytes())
    with pytest.raises(ArchiveError, match=r"part-00003\.parquet is not in the manifest"):
        ArchiveReader.open(directory)


def test_part_of_another_archive_is_found(directory: Path, tmp_path: Path) -> None:
    original = (directory / part_name(1)).read_bytes()
    write_part(directory / part_name(1), face_rows(4, seed=9), info_for(4))
    changed = (directory / part_name(1)).read_bytes()
    if len(changed) == len(original):
        pytest.skip("of equal size by chance")
    with pytest.raises(ArchiveError, match="instead of"):
        ArchiveReader.open(directory)


def test_changed_part_of_equal_size_is_found_by_its_hash(directory: Path) -> None:
    part = directory / part_name(0)
    part.write_bytes(flipped(part.read_bytes(), 8 * 4))
    with ArchiveReader.open(directory) as archive:
        assert archive.check_files() == [f"{part} is damaged (SHA-256)"]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"format":1}', b"[" * 100_000, b"\xff", b'{"format":1,"crc":0}'])
def test_broken_manifest_is_refused(directory: Path, text: bytes) -> None:
    (directory / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(ArchiveError, match=r"manifest\.json"):
        ArchiveReader.open(directory)


def test_manifest_cannot_name_files_elsewhere(directory: Path) -> None:
    text = (directory / MANIFEST_NAME).read_text().replace("part-00001.parquet", "../elsewhere/x.parquet")
    body = text[: text.rindex(',"crc"')]
    (directory / MANIFEST_NAME).write_text(f'{body},"crc":{zlib.crc32((body + "}").encode())}}}')
    with pytest.raises(ArchiveError, match="wrong names"):
        ArchiveReader.open(directory)


def test_directory_without_manifest_is_not_an_archive(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()
    with pytest.raises(ArchiveError, match=r"no _manifest\.json"):
        ArchiveReader.open(directory)


# ---- what is not an archive ----


def test_nothing_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no archive"):
        ArchiveReader.open(tmp_path / "missing.parquet")


def test_other_files_are_not_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(ArchiveError, match="does not start as a Parquet file"):
        ArchiveReader.open(path)
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(ArchiveError, match="not an archive of zippy-batch"):
        ArchiveReader.open(path)


@pytest.mark.parametrize(("number", "message"), [(4, "format 4.*install a newer one"), (2, "format 2.*never released")])
def test_another_format_says_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "FORMAT_VERSION", number)
    monkeypatch.setattr(zippy_batch.archives.description, "FORMAT_VERSION", number)
    path = make(tmp_path, face_rows(2))
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match=message):
        ArchiveReader.open(path)


def sealed_again(path: Path) -> None:
    """Make the checksums of a file's footer right, whatever is in it."""
    data = bytearray(path.read_bytes())
    footer_at = len(data) - 8 - footer_bytes(bytes(data))
    guard_at = footer_at - 20
    index_bytes = int.from_bytes(data[guard_at + 4 : guard_at + 8], "little")
    covered = zlib.crc32(data[footer_at:-8], zlib.crc32(data[guard_at - index_bytes : guard_at]))
    data[guard_at + 8 : guard_at + 16] = struct.pack("<II", len(data) - 8 - footer_at, covered)
    data[guard_at + 16 : guard_at + 20] = struct.pack("<I", zlib.crc32(data[guard_at : guard_at + 16]))
    path.write_bytes(data)


# ---- hostile files ----


def test_table_written_by_another_tool_is_refused(tmp_path: Path) -> None:
    path = single_file(tmp_path, face_rows(5))
    table, description = pq.read_table(path), pq.read_metadata(path).metadata
    pq.write_table(table.replace_schema_metadata(description), path)
    with pytest.raises(ArchiveError, match="another tool wrote it"):
        ArchiveReader.open(path)


def test_rows_that_lie_with_a_right_checksum_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "problem_of", lambda row: None)
    good = face_rows(1)[0]
    lies = [
        replace(good, width=1 << 30),
        replace(good, codec="png"),
        replace(good, quality=0),
        replace(raw_row(b"r", b"1234"), source_bytes=5),
    ]
    found = read_all(single_file(tmp_path, [*lies, good]))
    assert [type(one) for one in found] == [Damage] * 4 + [Row]
    assert all("contradict" in damage.reason for damage in damaged(found))


POOLS: list[object] = []
"""Arrow may free memory later than Python drops it, so a pool that was used must stay."""


def memory_of(read: Callable[[], object]) -> int:
    """Peak of Arrow's and Python's memory in bytes."""
    before, own = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    POOLS.append(own)
    pa.set_memory_pool(own)
    tracemalloc.start()
    try:
        read()
        return int(own.max_memory() or 0) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def bomb(path: Path, column: str) -> Path:
    """An archive whose `column` repeats 64 KiB in each of 4096 rows, which makes 256 MiB of a small file."""
    path = single_file(path, [replace(row, jpeg_tables=None) for row in face_rows(4096)])
    table, description = pq.read_table(path), pq.read_metadata(path).metadata[METADATA_KEY.encode()]
    place = table.column_names.index(column)
    values = pa.array([b"x" * ((1 << 16) + 1)] * 4096, pa.binary()).cast(table.schema.field(column).type)
    with path.open("wb") as sink:
        writer = PartWriter(sink)
        writer.add_table(table.set_column(place, table.schema.field(column), values))
        writer.finish(description.decode())
    return path


@pytest.mark.parametrize("column", ["jpeg_tables", "raw", "path", "label"])
def test_small_file_does_not_become_large_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    path = bomb(tmp_path, column)
    monkeypatch.setattr(zippy_batch.archives.part_file, "_MAX_GROUP_BYTES", 100 << 20)
    assert path.stat().st_size < 4 << 20

    def read() -> None:
        found = read_all_or_none(path)
        assert found is None or len(damaged(found)) == 4096

    assert memory_of(read) < 150 << 20


def test_page_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = single_file(tmp_path, face_rows(5))
    chunks = pq.read_metadata(path).row_group(0)
    chunk = next(chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "ssim")
    data = bytearray(path.read_bytes())
    at = chunk.data_page_offset
    # the page header is: type, decompressed size, ...
    assert data[at : at + 3] == bytes([0x15, 0x00, 0x15])
    data[at + 3 : at + 8] = bytes([0xFE, 0xFF, 0xFF, 0xFF, 0x0F])
    path.write_bytes(data)
    assert memory_of(lambda: damaged(read_all(path))) < 50 << 20
    assert len(damaged(read_all(path))) == 5


def read_all_or_none(path: Path) -> list[Row | Damage] | None:
    try:
        return read_all(path)
    except ArchiveError:
        return None


def test_footer_with_random_changes_never_stops_the_process(tmp_path: Path) -> None:
    path = single_file(tmp_path, mixed_rows(10))
    data = path.read_bytes()
    start = len(data) - 8 - footer_bytes(data)
    draw = random.Random(3)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 4])):
            at = draw.randrange(start, len(data) - 8)
            match draw.randrange(3):
                case 0:
                    changed[at] = draw.choice([0, 0x7F, 0x80, 0xFF, draw.randrange(256)])
                case 1:
                    del changed[at : at + draw.randrange(1, 4)]
                case 2:
                    changed[at:at] = draw.randbytes(draw.randrange(1, 4))
        changed[-8:-4] = struct.pack("<I", len(changed) - 8 - start)
        path.write_bytes(changed)
        sealed_again(path)
        for row in read_all_or_none(path) or []:
            assert isinstance(row, Damage) or row in mixed_rows(10)


def test_description_is_json_with_its_own_checksum(tmp_path: Path) -> None:
    path = single_file(tmp_path, face_rows(3))
    description = json.loads(pq.read_metadata(path).metadata[METADATA_KEY.encode()])
    crc = description.pop("crc")
    assert description == {
        "exact_bytes": [0],
        "format": 3,
        "models": MODELS,
        "options": OPTIONS,
        "payload_bytes": [sum(len(row.payload) for row in face_rows(3))],
        "shards": [3],
    }
    assert crc == zlib.crc32(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())


# ---- checksums of whole row groups ----


def test_checksums_in_bulk_are_those_of_the_rows(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "MAX_ROWS_PER_GROUP", 16)
    shards = mixed_rows(50), mixed_rows(7, seed=1), [raw_row(b"a\xff.txt", b"x" * 5000)], face_rows(20)
    with ArchiveReader.open(make(tmp_path, *shards)) as archive:
        found = [archive.whole_sizes(shard) for shard in archive.shards()]
    assert found == [(sum(r.source_bytes for r in rows), sum(len(r.payload) for r in rows)) for rows in shards]


def test_a_dictionary_that_lacks_what_is_asked_of_it_is_damage() -> None:
    for index in (1, -1, 1 << 20):
        broken = pa.DictionaryArray.from_arrays(pa.array([0, index], pa.int32()), pa.array([b"a"]), safe=False)
        with pytest.raises(ValueError, match="fewer values"):
            group_crcs({"path": pa.chunked_array([broken])}, 2)


def test_checksums_in_bulk_miss_no_damage(tmp_path: Path) -> None:
    path = single_file(tmp_path, mixed_rows(30), mixed_rows(12, seed=1))
    whole, choices = path.read_bytes(), random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(120):
        data = bytearray(whole)
        data[choices.randrange(4, len(data) - footer_bytes(whole) - 40)] ^= 1 << choices.randrange(8)
        path.write_bytes(data)
        with ArchiveReader.open(path, allow_damage=True) as archive:
            for shard in archive.shards():
                is_whole = archive.whole_sizes(shard) is not None
                assert is_whole == (not damaged(archive.read_rows(shard)))
                seen[is_whole] += 1
    assert min(seen.values()) > 20
