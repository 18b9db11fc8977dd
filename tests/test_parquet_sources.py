"""Parquet tables as others write them: which column is which, and of which type."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import CODECS

from zippy_batch.config import ArchiveOptions
from zippy_batch.errors import SourceError, UsageError
from zippy_batch.run.pipeline import archive, verify
from zippy_batch.sources import Wanted, list_source

JPEG = b"\xff\xd8\xff\xe0 as far as the first bytes go"
IMAGES = [JPEG, b"x" * 30, b"x", JPEG + b"2"]
MANY = [b"%d" % (i % 90) for i in range(150)]
"""More than are decoded at a time."""


def write(path: Path, columns: Mapping[str, Any], rows_per_group: int = 1000, **metadata: str) -> Path:
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path, row_group_size=rows_per_group)
    return path


def contents(path: Path, **wanted: Any) -> dict[str, bytes]:
    source, listing = list_source(path, Wanted(**wanted))
    read = source.reader(listing.files[:])
    return {file.path.decode(): read(file) for file in listing.files}


def labels(path: Path, **wanted: Any) -> list[str | None]:
    """In the order of the rows, whose names have their numbers."""
    return [file.label for file in list_source(path, Wanted(**wanted))[1].files]


def notes(path: Path, **wanted: Any) -> tuple[str, ...]:
    return list_source(path, Wanted(**wanted))[1].notes


# ---- layouts ----


def test_a_table_of_ray_is_known(tmp_path: Path) -> None:
    paths = ["/mnt/faces/id_0/0.jpg", "/mnt/faces/id_0/1.jpg", "bucket/faces/2.jpg", "/mnt/faces/id_1/3.jpg"]
    source = write(tmp_path / "x.parquet", {"bytes": IMAGES, "path": paths})
    assert contents(source) == {path.lstrip("/"): data for path, data in zip(paths, IMAGES, strict=True)}
    assert notes(source) == ()


def test_a_table_of_spark_is_known_with_its_times(tmp_path: Path) -> None:
    times = [datetime(2020, 1, 1, 0, 0, i, 700_000, UTC) for i in range(3)] + [None]
    columns = {
        "path": ["dbfs:/faces/0.jpg", "file:/faces/1.jpg", "s3://bucket/faces/2.jpg", "file:///faces/3.jpg"],
        "modificationTime": pa.array(times, pa.timestamp("ms", "UTC")),
        "length": [len(image) for image in IMAGES],
        "content": IMAGES,
    }
    source = write(tmp_path / "x.parquet", columns)
    names = ["faces/0.jpg", "faces/1.jpg", "bucket/faces/2.jpg", "faces/3.jpg"]
    assert contents(source) == dict(zip(names, IMAGES, strict=True))
    found = {file.path.decode(): file.mtime_s for file in list_source(source, Wanted())[1].files}
    wanted = [1577836800, 1577836801, 1577836802, int(source.stat().st_mtime)]
    assert [found[name] for name in names] == wanted
    assert notes(source) == ()


def test_a_table_of_img2dataset_is_known(tmp_path: Path) -> None:
    columns = {"key": ["000000000", "000000001", "a.jpg", "b/c"], "jpg": IMAGES}
    source = write(tmp_path / "x.parquet", columns)
    assert list(contents(source)) == ["000000000.jpg", "000000001.bin", "a.jpg", "b/c.jpg"]
    write(source, {**columns, "caption": ["a", "b", "c", "d"], "jpg": [JPEG, None, JPEG, None]})
    with pytest.raises(UsageError, match="no place for: caption"):
        contents(source)
    assert list(contents(source, leave_out=True)) == ["000000000.jpg", "a.jpg"]


def test_a_struct_says_its_names_before_a_column_does(tmp_path: Path) -> None:
    image = pa.array([{"bytes": JPEG, "path": "a.jpg"}])
    source = write(tmp_path / "x.parquet", {"image": image, "file_name": ["b.jpg"]})
    assert contents(source, leave_out=True) == {"a.jpg": JPEG}
    assert contents(source, name_column="file_name") == {"b.jpg": JPEG}
    source = write(tmp_path / "y.parquet", {"image": pa.array([{"bytes": JPEG}]), "file_name": ["b.jpg"]})
    assert contents(source) == {"b.jpg": JPEG}


def test_the_index_of_pandas_is_left_out_and_said(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "__index_level_0__": [3, 1, 2, 0]})
    assert list(contents(source).values()) == IMAGES
    assert notes(source) == (f"columns of {source} that are left out: __index_level_0__",)


def test_of_several_columns_the_known_one_is_the_image(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"depth": [b"d"], "jpg": [JPEG]})
    assert list(contents(source, leave_out=True).values()) == [JPEG]
    assert notes(source, leave_out=True) == (f"columns of {source} that are left out: depth",)


# ---- options ----


def test_columns_are_taken_as_they_are_named(tmp_path: Path) -> None:
    columns = {"left": [b"l", b"m"], "right": [b"r", b"s"], "who": ["ann", None], "number": [7, 8], "image": [b"", b""]}
    source = write(tmp_path / "x.parquet", columns)
    asked = {"image_column": "right", "name_column": "number", "label_column": "who", "leave_out": True}
    assert contents(source, **asked) == {"00000007.bin": b"r", "00000008.bin": b"s"}
    assert labels(source, **asked) == ["ann", None]
    assert notes(source, **asked) == (f"columns of {source} that are left out: left, image",)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"image_column": "photo"}, "no column photo of the type binary"),
        ({"image_column": "number"}, "no column number of the type binary"),
        ({"name_column": "who"}, "no column for --name-column who; it has image: binary, number: int64"),
        ({"name_column": "image"}, "--name-column names the column of images, image"),
        ({"label_column": "image"}, "--label-column names the column of images, image"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path: Path, wanted: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "x.parquet", {"image": [JPEG], "number": [1]})
    with pytest.raises(UsageError, match=message):
        list_source(source, Wanted(**wanted))


def test_an_archive_is_verified_by_the_columns_that_it_was_made_of(tmp_path: Path) -> None:
    columns = {"photo": IMAGES, "other": IMAGES[::-1], "who": ["a", "b", "c", "d"], "age": [1.0, None, 2.0, 30.0]}
    source = write(tmp_path / "x.parquet", columns)
    options = ArchiveOptions(
        device="cpu", exact="always", image_column="photo", name_column="who", label_column="age", leave_out=True
    )
    archive(source, tmp_path / "out.parquet", options, codecs=CODECS)
    table = pq.read_table(tmp_path / "out.parquet", columns=["path", "label"])
    assert table["path"].to_pylist() == ["a.jpg", "b.bin", "c.bin", "d.jpg"]
    assert table["label"].to_pylist() == ["1", None, "2", "30"]
    assert verify(tmp_path / "out.parquet", source, codecs=CODECS).exit_code == 0
    write(source, {**columns, "age": [1.0, 1.0, 2.0, 30.0]})
    assert [one.path for one in verify(tmp_path / "out.parquet", source, codecs=CODECS).differing] == ["b.bin"]


# ---- types ----


def dictionary(index: pa.DataType, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    distinct = sorted({value for value in values if value is not None})
    indices = [None if value is None else distinct.index(value) for value in values]
    return pa.DictionaryArray.from_arrays(pa.array(indices, index), pa.array(distinct, kind))


BINARY = {
    "binary": lambda images: pa.array(images, pa.binary()),
    "large": lambda images: pa.array(images, pa.large_binary()),
    "view": lambda images: pa.array(images, pa.binary_view()),
    "int8": lambda images: dictionary(pa.int8(), images, pa.binary()),
    "uint16": lambda images: dictionary(pa.uint16(), images, pa.large_binary()),
    "int32": lambda images: dictionary(pa.int32(), images, pa.binary()),
    "uint64": lambda images: dictionary(pa.uint64(), images, pa.binary()),
    "chunked": lambda images: pa.chunked_array([pa.array(images[:1], pa.binary()), pa.array(images[1:], pa.binary())]),
}


@pytest.mark.parametrize("kind", BINARY)
def test_images_of_every_binary_type(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / "x.parquet", {"image": BINARY[kind]([*IMAGES, None])}, 2)
    assert list(contents(source, leave_out=True).values()) == IMAGES
    assert notes(source, leave_out=True) == (f"left out: 1 row of {source} without an image",)
    write(source, {"image": BINARY[kind](MANY)})
    assert list(contents(source).values()) == MANY


def test_images_of_a_fixed_size(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": pa.array([b"abc", b"def"], pa.binary(3))})
    assert list(contents(source).values()) == [b"abc", b"def"]


@pytest.mark.parametrize("kind", sorted(set(BINARY) - {"chunked"}))
@pytest.mark.parametrize("text", ["string", "large", "view", "dictionary"])
def test_images_in_structs_of_every_type(tmp_path: Path, kind: str, text: str) -> None:
    names = [f"{i}.jpg" for i in range(len(MANY))]
    paths = {
        "string": pa.array(names),
        "large": pa.array(names, pa.large_string()),
        "view": pa.array(names, pa.string_view()),
        "dictionary": pa.array(names).dictionary_encode(),
    }[text]
    image = pa.StructArray.from_arrays([BINARY[kind](MANY), paths], ["bytes", "path"])
    source = write(tmp_path / "x.parquet", {"image": image})
    assert contents(source) == dict(zip(names, MANY, strict=True))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "int16", "uint32"])
def test_names_and_labels_of_every_type_of_text(tmp_path: Path, kind: pa.DataType | str) -> None:
    def column(values: list[str | None]) -> pa.Array:
        if isinstance(kind, str):
            return dictionary(getattr(pa, kind)(), values, pa.string())
        return pa.array(values, kind)

    columns = {"image": IMAGES, "path": column(["a", "b", "c", None]), "label": column(["x", None, "", "x"])}
    source = write(tmp_path / "x.parquet", columns)
    assert list(contents(source)) == ["00000003.jpg", "a.jpg", "b.bin", "c.bin"]
    assert labels(source) == ["x", "x", None, ""]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([0.0, 1.0, None, 12345678.0]), ["0", "1", None, "12345678"]),
        (pa.array([0.0, np.nan, None, -2.0], from_pandas=False), ["0", None, None, "-2"]),
        (pa.array([0.5, 0.1, 1.0, 1e20], pa.float32()), ["0.5", "0.1", "1", "100000002004087734272"]),
        (pa.array(np.array([1, 2, 3, 0.5], np.float16)), ["1", "2", "3", "0.5"]),
        (pa.array([np.inf, 1.5, None, 1.0]), ["inf", "1.5", None, "1"]),
        (pa.array([2**60 + 1, None, -1, 0]), [str(2**60 + 1), None, "-1", "0"]),
        (pa.array([2**64 - 1, 0, 1, None], pa.uint64()), [str(2**64 - 1), "0", "1", None]),
        (pa.array([True, False, None, True]), ["true", "false", None, "true"]),
        (pa.array([Decimal("1.50"), None, Decimal(2), Decimal(3)]), ["1.50", None, "2.00", "3.00"]),
        (pa.array([None] * 4, pa.float64()), [None] * 4),
    ],
)
def test_labels_of_numbers(tmp_path: Path, column: pa.Array, texts: list[str | None]) -> None:
    assert labels(write(tmp_path / "x.parquet", {"image": IMAGES, "label": column}, 2)) == texts


def test_class_names_of_floats_and_of_other_columns(tmp_path: Path) -> None:
    features = {"info": {"features": {"who": {"names": ["ann", "bob"], "_type": "ClassLabel"}}}}
    column = pa.array([0.0, 1.0, None, 2.0])
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "who": column}, huggingface=json.dumps(features))
    assert labels(source, label_column="who") == ["ann", "bob", None, "2"]


def test_text_that_is_none_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    not_text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    source = write(tmp_path / "x.parquet", {"image": [JPEG], "who": not_text})
    with pytest.raises(SourceError, match=r"x\.parquet: cannot be read as Parquet.*utf-8"):
        labels(source, label_column="who")
    assert [file.path for file in list_source(source, Wanted(name_column="who"))[1].files] == [b"\xff.jpg"]


def test_tables_of_shared_cases(shared: Path) -> None:
    cases = shared / "cases"
    assert list(contents(cases / "parquet-columns" / "ray_binary.parquet")) == [
        "mnt/faces/id_0/0.jpg",
        "mnt/faces/id_0/1.jpg",
        "mnt/faces/id_1/2.jpg",
        "mnt/faces/id_1/3.jpg",
    ]
    assert list(contents(cases / "parquet-columns" / "spark_binaryfile.parquet")) == [
        f"faces/{i}.jpg" for i in range(4)
    ]
    assert labels(cases / "parquet-columns" / "float_label.parquet") == ["0", "1", None, "1"]
    for path in sorted((cases / "parquet-types").iterdir()):
        assert all(name.endswith(".jpg") for name in contents(path))


def test_a_label_column_that_is_null_throughout_holds_no_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "label": pa.nulls(4)})
    assert labels(source) == [None] * 4


def test_text_that_was_written_as_binary_is_text_where_it_is_asked_for(tmp_path: Path) -> None:
    columns = {
        "image": IMAGES,
        "n": [b"a.jpg", b"b.jpg", None, b"\xff"],
        "l": [b"ann", "é".encode(), None, b""],
    }
    source = write(tmp_path / "x.parquet", columns)
    listing = list_source(source, Wanted(image_column="image", name_column="n", label_column="l"))[1]
    assert {file.path: file.label for file in listing.files} == {
        b"a.jpg": "ann", b"b.jpg": "é", b"00000002.bin": None, b"\xff.jpg": "",
    }  # fmt: skip


def test_one_column_may_be_name_and_label(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "who": ["a", "b", "c", "d"]})
    assert labels(source, name_column="who", label_column="who") == ["a", "b", "c", "d"]


def test_columns_of_another_type_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "when": [datetime(2020, 1, 1, tzinfo=UTC)] * 4})
    with pytest.raises(UsageError, match=r"the column when of --label-column is timestamp.*, expected text, integers"):
        list_source(source, Wanted(label_column="when"))
    with pytest.raises(UsageError, match="--label-column names the column of images, image"):
        list_source(source, Wanted(label_column="image", leave_out=True))


def test_metadata_of_any_depth_is_passed_over(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": IMAGES, "label": [0, 1, 2, 3]}, huggingface="[" * 100_000)
    assert labels(source) == ["0", "1", "2", "3"]
