"""Labels from a table beside the source, and from the names of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import CODECS, make_faces
from holders import write_tar
from typer.testing import CliRunner

from zippy_batch.cli.app import app
from zippy_batch.config import ArchiveOptions
from zippy_batch.errors import UsageError
from zippy_batch.run.pipeline import archive, verify
from zippy_batch.sources import Wanted, list_source

NAMES = ("000001.jpg", "000002.jpg", "000003.jpg")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return directory(tmp_path / "faces", *NAMES)


def directory(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


def labels(source: Path, **wanted: Any) -> dict[str, str | None]:
    return {file.path.decode(): file.label for file in list_source(source, Wanted(**wanted))[1].files}


def notes(source: Path, **wanted: Any) -> tuple[str, ...]:
    return list_source(source, Wanted(**wanted))[1].notes


def table(path: Path, text: str | bytes) -> dict[str, Any]:
    path = path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return {"labels": str(path)}


def refused(source: Path, message: str, **wanted: Any) -> None:
    with pytest.raises(UsageError, match=message):
        list_source(source, Wanted(**wanted))


# ---- tables ----

IDENTITIES = dict(zip(NAMES, ["2880", "2937", "2880"], strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "000001.jpg 2880\n000002.jpg 2937\n000003.jpg 2880\n",
        "000001.jpg\t2880\r\n000002.jpg\t2937\r\n000003.jpg\t2880",
        "image_id,identity\n000001.jpg,2880\n000002.jpg,2937\n000003.jpg,2880\n",
        'label;file_name\n"2880";"000001.jpg"\n2937;000002.jpg\n2880;./000003.jpg\n',
        "\ufeff000001.jpg , 2880\n\n000002.jpg, 2937\n000003.jpg,2880\n",
        "3\nidentity\n000001.jpg 2880\n000002.jpg 2937\n000003.jpg 2880\n",
        "000001,2880\n000002,2937\n000003,2880\n",
        "id,who\n000001,2880\n000002,2937\n000003,2880\n",
        "000001.png 2880\n000002.png 2937\n000003.png 2880\n",
        "img/000001.jpg 2880\nimg/000002.jpg 2937\nimg/000003.jpg 2880\n",
        "path,label\n/data/celeba/000001.jpg,2880\n/data/celeba/000002.jpg,2937\n/data/celeba/000003.jpg,2880\n",
    ],
)
def test_forms_of_a_table(faces: Path, tmp_path: Path, text: str) -> None:
    wanted = table(tmp_path, text)
    assert labels(faces, **wanted) == IDENTITIES
    assert notes(faces, **wanted) == ()


def test_a_table_of_utf_16(faces: Path, tmp_path: Path) -> None:
    text = "file,who\n000001.jpg,Zoë\n000002.jpg,名\n000003.jpg,x\n"
    assert list(labels(faces, **table(tmp_path, text.encode("utf-16"))).values()) == ["Zoë", "名", "x"]


def test_a_table_in_a_code_page(faces: Path, tmp_path: Path) -> None:
    wanted = table(tmp_path, "file,who\n000001.jpg,Zoë\n".encode("cp1252"))
    refused(faces, r"labels\.csv is not UTF-8 text .*; say what it is with --encoding", **wanted)
    assert labels(faces, **wanted, encoding="cp1252")["000001.jpg"] == "Zoë"


ATTRIBUTES = """3
5_o_Clock_Shadow Male Smiling
000001.jpg -1  1  1
000002.jpg -1 -1  1
000003.jpg  1  1 -1
"""


@pytest.mark.parametrize("text", [ATTRIBUTES, "image_id," + ATTRIBUTES[2:].replace("  ", " ").replace(" ", ",")])
def test_attributes_of_celeba(faces: Path, tmp_path: Path, text: str) -> None:
    wanted = table(tmp_path, text)
    found = labels(faces, **wanted)
    assert json.loads(found["000002.jpg"] or "") == {"5_o_Clock_Shadow": -1, "Male": -1, "Smiling": 1}
    assert list(labels(faces, **wanted, label_column="Male").values()) == ["1", "-1", "1"]
    assert notes(faces, **wanted, label_column="Male") == (
        f"columns of {wanted['labels']} that are left out: 5_o_Clock_Shadow, Smiling",
    )
    refused(faces, "no column 'Age'; it has", **wanted, label_column="Age")


def test_values_without_a_header_become_a_list(faces: Path, tmp_path: Path) -> None:
    assert labels(faces, **table(tmp_path, "000001.jpg,7,x\n"))["000001.jpg"] == '[7, "x"]'


def test_a_column_that_is_called_label_is_the_label(faces: Path, tmp_path: Path) -> None:
    wanted = table(tmp_path, "caption,file_name,label\nnice,000001.jpg,a\n,000002.jpg,\n")
    assert list(labels(faces, **wanted).values()) == ["a", None, None]
    assert notes(faces, **wanted) == (
        f"columns of {wanted['labels']} that are left out: caption",
        f"without a line in {wanted['labels']}, and without a label: 1 picture",
    )


def test_columns_of_a_table_are_taken_as_they_are_named(faces: Path, tmp_path: Path) -> None:
    wanted = table(tmp_path, "path,who,photo\n/x/y,ann,000001.jpg\n")
    assert labels(faces, **wanted, name_column="photo", label_column="who")["000001.jpg"] == "ann"


def test_files_are_found_by_their_paths_first(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", "a/x.jpg", "b/x.jpg", "b/my face.jpg")
    wanted = table(tmp_path, "x.jpg 1\nb/x.jpg 2\nb/my face.jpg 3\n")
    assert labels(source, **wanted) == {"a/x.jpg": "1", "b/x.jpg": "2", "b/my face.jpg": "3"}


def test_names_of_several_labels_name_nobody(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", "x.jpg", "y.jpg")
    wanted = table(tmp_path, "a/x.jpg 1\nb/x.jpg 2\na/y.jpg 3\n")
    assert labels(source, **wanted) == {"x.jpg": None, "y.jpg": "3"}


def test_what_a_table_and_a_source_do_not_share_is_said(faces: Path, tmp_path: Path) -> None:
    directory(faces, "notes.md")
    wanted = table(tmp_path, "000001.jpg 1\n000009.jpg 2\n000008.jpg 2\n")
    assert notes(faces, **wanted) == (
        f"without a line in {wanted['labels']}, and without a label: 2 pictures",
        f"without a file of the source: 2 lines of {wanted['labels']}",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other.jpg 1\nmore.jpg 2\n", r"no line of .*labels\.csv names a file of the source; its first line is about"),
        ("000001.jpg 1\n000001.jpg 2\n", r"labels\.csv, line 2: 000001\.jpg has another label before"),
        ("000001.jpg\n000002.jpg\n", r"line 1: expected the path of a picture and its label"),
        ("000001.jpg,1\n000002.jpg\n", r"line 2: expected the path of a picture and its label"),
        ("", r"labels\.csv is empty"),
        ("\n\n", r"labels\.csv is empty"),
        ("000001.jpg," + "x" * 70_000, r"line 1: a label of 70000 bytes"),
        ("000001.jpg," + "x" * 200_000, r"labels\.csv, line 1: field larger than field limit"),
    ],
)
def test_tables_that_cannot_be_are_refused(faces: Path, tmp_path: Path, text: str, message: str) -> None:
    refused(faces, message, **table(tmp_path, text))


def test_a_table_that_is_not_there_is_refused(faces: Path, tmp_path: Path) -> None:
    refused(faces, r"cannot read the labels .*missing\.csv: No such file", labels=str(tmp_path / "missing.csv"))
    with pytest.raises(
        UsageError, match="labels must be one of auto, folders, none, the path of a table, not 'folder'"
    ):
        ArchiveOptions(labels="folder")


def test_a_table_labels_members_too(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", {"a/1.jpg": b"", "a/1.cls": b"7", "b/2.jpg": b""})
    assert labels(source, **table(tmp_path, "1.jpg x\nb/2.jpg y\n")) == {
        "a/1.jpg": "x",
        "a/1.cls": None,
        "b/2.jpg": "y",
    }


# ---- patterns ----


def test_the_group_of_a_pattern_is_the_label(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", "7/2880_000001.jpg", "2937_000002.jpg", "else.jpg", "notes")
    assert labels(source, label_pattern=r"^(\d+)_") == {
        "2937_000002.jpg": "2937",
        "7/2880_000001.jpg": "2880",
        "else.jpg": None,
        "notes": None,
    }
    assert notes(source, label_pattern=r"^(\d+)_") == (
        "without a label, because --label-pattern does not fit: 1 picture",
    )
    assert labels(source, label_pattern=r"^(\d+)/")["7/2880_000001.jpg"] == "7"
    assert labels(source, label_pattern=r"^(\d+)_(?P<label>\d+)")["2937_000002.jpg"] == "000002"


def test_several_groups_are_an_object_or_a_list(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", "25_0_3_20170116174525125.jpg.chip.jpg")
    (named,) = labels(source, label_pattern=r"^(?P<age>\d+)_(?P<gender>\d)_(?P<race>\d)_(?P<date>\d+)").values()
    assert json.loads(named or "") == {"age": 25, "gender": 0, "race": 3, "date": 20170116174525125}
    (plain,) = labels(source, label_pattern=r"^(\d+)_(\d)_(x)?").values()
    assert plain == "[25, 0, null]"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is no regular expression"),
        (r"\d+", "has no group"),
        ("(z)", "fits no name of the source, whose first is"),
    ],
)
def test_patterns_that_give_no_label_are_refused(faces: Path, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list_source(faces, Wanted(label_pattern=pattern))


def test_labels_come_from_one_place(faces: Path) -> None:
    with pytest.raises(UsageError, match="drop one of the two"):
        ArchiveOptions(labels="folders", label_pattern="(x)")


# ---- runs ----


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("file;label\n000001.jpg;1,5\n000002.jpg;2,5\n000003.jpg;1,0\n", "1,5"),
        ("7,000001.jpg\n8,000002.jpg\n9,000003.jpg\n", "7"),
        ("0\t7\tx/000001.jpg\n1\t8\tx/000002.jpg\n2\t9\tx/000003.jpg\n", "[0, 7]"),
        ("file,label\nimg\\000001.jpg,7\nimg\\000002.jpg,8\n", "7"),
        ("file,label\n000001.jpg,a\u2028b\x0bc\x85d\n000002.jpg,c\n", "a\u2028b\x0bc\x85d"),
    ],
)
def test_tables_of_other_forms(tmp_path: Path, faces: Path, text: str, first: str) -> None:
    assert labels(faces, **table(tmp_path, text))["000001.jpg"] == first


def test_folders_of_windows_tell_names_apart(tmp_path: Path) -> None:
    source = directory(tmp_path / "faces", "ann/0.jpg", "bob/0.jpg")
    found = labels(source, **table(tmp_path, "file,label\nann\\0.jpg,7\nbob\\0.jpg,8\n"))
    assert found == {"ann/0.jpg": "7", "bob/0.jpg": "8"}


def test_a_quotation_that_does_not_end_takes_no_lines_with_it(tmp_path: Path, faces: Path) -> None:
    wanted = table(tmp_path, 'file,label\n000001.jpg,"ann\n000002.jpg,bob\n')
    refused(faces, "labels.csv, line 3: unexpected end of data", **wanted)


def test_a_table_of_a_header_alone(tmp_path: Path, faces: Path) -> None:
    refused(faces, "names a file of the source: it has a header and nothing else", **table(tmp_path, "file,label\n"))


def test_a_line_that_several_files_share_is_said(tmp_path: Path) -> None:
    source = directory(tmp_path / "faces", "ann/0.jpg", "bob/0.jpg", "bob/1.jpg")
    wanted = table(tmp_path, "0.jpg,7\n1.jpg,8\n")
    assert labels(source, **wanted) == {"ann/0.jpg": "7", "bob/0.jpg": "7", "bob/1.jpg": "8"}
    (note,) = notes(source, **wanted)
    assert note == f"one label for several files: 1 line of {wanted['labels']}, such as 0.jpg"


def test_labels_of_a_table_are_archived_and_the_archive_is_verified(tmp_path: Path) -> None:
    source = make_faces(tmp_path / "faces")
    wanted = table(tmp_path, "0.jpg ann\nsub/1.png bob\n")
    options = ArchiveOptions(device="cpu", exact="always", **wanted)
    archive(source, tmp_path / "out.parquet", options, codecs=CODECS)
    found = pq.read_table(tmp_path / "out.parquet", columns=["path", "label"]).to_pylist()
    assert {row["path"]: row["label"] for row in found if row["label"]} == {"0.jpg": "ann", "sub/1.png": "bob"}
    assert str(tmp_path) not in str(pq.read_metadata(tmp_path / "out.parquet").metadata)
    report = verify(tmp_path / "out.parquet", source, codecs=CODECS)
    assert (report.exit_code, report.labels_compared) == (0, False)
    assert f"labels are not compared: {source} has none" in report.lines()
    assert verify(tmp_path / "out.parquet", codecs=CODECS).labels_compared
    archive(source, tmp_path / "folders.parquet", ArchiveOptions(device="cpu", labels="folders"), codecs=CODECS)
    assert verify(tmp_path / "folders.parquet", source, codecs=CODECS).labels_compared


def test_the_command_line_takes_labels(tmp_path: Path) -> None:
    source = make_faces(tmp_path / "faces")
    command = ["archive", str(source), str(tmp_path / "out.parquet"), "--exact", "--workers", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--label-pattern", "([0-9])"])
    assert result.exit_code == 0, result.output
    labels = pq.read_table(tmp_path / "out.parquet", columns=["label"])["label"].to_pylist()
    assert sorted(filter(None, labels)) == ["0", "0", "1", "1", "2", "3", "4", "5", "6"]
