"""Other libraries see the same pictures and files as `zb.open`: DuckDB, Polars and Ray Data."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

import zippy_batch as zb
from zippy_batch.adapters import extras

GOLDEN = Path(__file__).parent / "golden"
ONE, PARTS = GOLDEN / "v3.parquet", GOLDEN / "v3"


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Path, as it is stored -> file and pixels."""
    with zb.open(ONE, device="cpu") as archive:
        rows, files = archive.rows(), archive.rows().files()
        shown = {path: archive[path] for path in rows.paths if path not in ("notes.txt", "empty")}
        pixels = {path: archive[[file.number]].rgb()[0] for path, file in shown.items()}
        return {
            path.encode(errors="surrogateescape").decode(errors="backslashreplace"): (file, pixels.get(path))
            for path, file in zip(rows.paths, files, strict=True)
        }


def same(image: Any, pixels: np.ndarray | None) -> bool:
    """Whether a struct of height, width and rgb is what is known of a picture."""
    if image is None or pixels is None:
        return image is None and pixels is None
    return (image["height"], image["width"]) == pixels.shape[:2] and image["rgb"] == pixels.tobytes()


def test_a_table_is_decoded_as_one_batch(known: Any) -> None:
    for path in (ONE, PARTS):
        table = zb.decode_batch(pq.read_table(path), path)
        assert "payload" not in table.column_names
        assert table.num_rows == 20
        for row in table.to_pylist():
            assert same(row["image"], known[row["path"]][1])
    few = pq.read_table(
        ONE, columns=["codec", "payload", "raw", "raw_reason", "width", "height", "grey", "quality", "source_bytes"]
    )
    with pytest.raises(zb.UsageError, match="no column jpeg_header"):
        zb.decode_batch(few)
    few = pq.read_table(ONE, columns=[*few.column_names, "jpeg_header", "path"])
    large = few.cast(pa.schema([few.field(n).with_type(pa.large_binary()) if n == "payload" else few.field(n)
                                for n in few.column_names]))  # fmt: skip
    for row in zb.decode_batch(large, ONE).to_pylist():
        assert same(row["image"], known[row["path"]][1])


def test_a_row_that_is_not_what_was_written_is_named() -> None:
    table = pq.read_table(ONE)
    at = table.column_names.index("source_bytes")
    wrong = table.set_column(at, table.field(at), pa.array([7] * 20, pa.int64()))
    with pytest.raises(zb.DamagedRow, match=r"\.jpg: its bytes are not what was written"):
        zb.decode_batch(wrong, ONE)
    with pytest.raises(zb.DamagedRow, match="contradict each other"):
        zb.decode_batch(wrong.drop_columns(["crc"]), ONE)
    with pytest.raises(zb.ModelError, match=r"not built in: say archive="):
        zb.decode_batch(table)
    with pytest.raises(zb.DamagedRow, match=r"where it has others, say archive=.*not this model"):
        zb.decode_batch(table.replace_schema_metadata(None))
    with pytest.raises(zb.DamagedRow, match="not this model"):
        zb.decode_batch(table.replace_schema_metadata({"zippy_batch": "[]"}))


def test_duckdb_shows_pictures_and_files(known: Any) -> None:
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    zb.duckdb.register(connection)
    zb.duckdb.register(connection, PARTS)
    query = f"select path, image_jpeg(f), decode_image(f) from '{PARTS}/*.parquet' as f"
    rows = connection.sql(query).fetchall()
    assert len(rows) == 20
    for path, file, image in rows:
        assert file == known[path][0]
        assert same(image, known[path][1])
    joined = f"(values (1), (2)) as s(a) left join '{ONE}' as f on s.a = 2 and f.path = 'tall.png'"
    found = connection.sql(f"select s.a, image_jpeg(f) from {joined} order by a").fetchall()
    assert found == [(1, None), (2, known["tall.png"][0])]
    assert connection.sql(f"select image_jpeg(f) from '{ONE}' as f where psnr > 1000").fetchall() == []
    with pytest.raises(duckdb.Error, match="no column payload"):
        connection.sql(f"select image_jpeg(f) from (select path, codec from '{ONE}') as f").fetchall()


@pytest.mark.parametrize("path", [ONE, PARTS])
def test_polars_scans_lazily(path: Path, known: Any) -> None:
    polars = pytest.importorskip("polars")
    frame = zb.polars.scan(path)
    assert frame.collect_schema().names() == [*pq.read_schema(ONE).names, "image", "file"]
    rows = frame.select("path", "file", "image").collect().to_dicts()
    assert len(rows) == 20
    for row in rows:
        assert row["file"] == known[row["path"]][0]
        assert same(row["image"], known[row["path"]][1])
    plain = polars.from_arrow(pq.read_table(path))
    assert frame.drop("image", "file").sort("path").collect().equals(plain.sort("path"))
    few = frame.filter(polars.col("psnr") < 28, polars.col("codec") == "latent").select("path").collect()
    assert len(few) == 5
    assert frame.select(polars.len()).collect().item() == 20
    assert frame.head(3).select("image").collect().height == 3
    assert frame.filter(polars.col("path") == "nobody").collect().height == 0


def test_polars_reads_no_column_that_a_query_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    from zippy_batch.archives.reader import ArchiveReader

    read: list[str] = []
    group_table = ArchiveReader.group_table

    def noting(self: ArchiveReader, shard: int, group: int, names: Any) -> pa.Table:
        read.extend(names)
        return group_table(self, shard, group, names)

    monkeypatch.setattr(ArchiveReader, "group_table", noting)
    found = zb.polars.scan(ONE).filter(polars.col("psnr") > 1000).select("path", "image").collect()
    assert found.height == 0
    assert set(read) <= {"psnr", "path"}


def test_ray_data_gets_arrays(known: Any) -> None:
    found = zb.ray.decode_arrays(pq.read_table(ONE), ONE)
    assert len(found["path"]) == len(found["image"]) == 18
    for path, image in zip(found["path"], found["image"], strict=True):
        assert (image == known[path][1]).all()
    alike = pq.read_table(ONE).filter(pa.compute.field("width") == 42)
    assert zb.ray.decode_arrays(alike, ONE)["image"].shape[1:] == (42, 42, 3)
    with pytest.raises(zb.UsageError, match="no archive"):
        zb.ray.read(GOLDEN / "missing.parquet")


def test_what_is_missing_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(zb.UsageError, match=r"needs polars, which pip install 'zippy-batch\[polars\]' brings"):
        extras.needed("polars", "polars")
