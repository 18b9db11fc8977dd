"""erase: rows that are gone for good, all else as it was, and a receipt of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes import files_of
from rows import MODEL, face_rows, info_for, labelled, rows_of, write_archive
from s3 import S3, content
from s3 import s3 as s3
from s3 import s3_server as s3_server
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.cli.app import app
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.run.receipt import canonical
from zippy_batch.run.staging_local import open_local_staging
from zippy_batch.stores.object_path import listed

ROWS = labelled(face_rows(40))
WHERE = "label == 'id_3'"
GONE = [row for row in ROWS if row.label == "id_3"]
LEFT = [row for row in ROWS if row.label != "id_3"]


@pytest.fixture(params=["a.parquet", "a"])
def faces(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A single file, or a directory of parts: 4 shards of 10 rows, all but one with rows of the label."""
    (tmp_path / "here").mkdir()
    return write_archive(tmp_path / "here" / str(request.param), ROWS, 10, info_for(model_files={"latent": MODEL}))


def everything(folder: Path) -> bytes:
    return b"".join(files_of(folder).values())


def test_erased_rows_leave_no_byte_and_the_others_stay(faces: Path) -> None:
    if faces.suffix:
        for path in sorted(faces.with_suffix(".parts").iterdir()):
            path.unlink()
    assert all(row.payload in everything(faces.parent) for row in GONE)
    report = zb.erase(faces, WHERE)
    assert (report.rows, report.rows_left) == (len(GONE), len(LEFT))
    assert rows_of(faces) == LEFT
    data = everything(faces.parent)
    assert not [row for row in GONE if row.payload in data or row.path in data]
    assert zb.verify(faces).exit_code == 0
    assert zb.open(faces).info.model_files == {"latent": MODEL}
    kept = {faces.name, "a.parts"} if faces.suffix else {faces.name}
    assert {path.name for path in faces.parent.iterdir()} == {*kept, Path(report.receipt or "").name}


def test_parts_without_such_rows_are_not_written_anew(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", ROWS, 10)
    before = {path.name: path.stat() for path in (tmp_path / "a").iterdir()}
    report = zb.erase(tmp_path / "a", paths=["000012.jpg"])
    after = {path.name: path.stat() for path in (tmp_path / "a").iterdir()}
    assert report.rewritten == ("part-00001.parquet",)
    kept = {name for name in after if before[name].st_ino == after[name].st_ino}
    assert kept == {f"part-0000{i}.parquet" for i in (0, 2, 3)}


def test_a_part_that_loses_all_its_rows_is_left_out(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", ROWS, 10)
    zb.erase(tmp_path / "a", paths=[row.path for row in ROWS[10:20]])
    assert zb.open(tmp_path / "a").info.shards == (10, 10, 10)
    assert rows_of(tmp_path / "a") == [*ROWS[:10], *ROWS[20:]]


def test_the_receipt_says_what_was_done_and_names_nobody(faces: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in ([faces] if faces.is_file() else faces.iterdir())}
    zb.erase(faces, WHERE, receipt=tmp_path / "receipt.json")
    after = {path.name: path.read_bytes() for path in ([faces] if faces.is_file() else faces.iterdir())}
    text = (tmp_path / "receipt.json").read_text()
    receipt = json.loads(text)
    assert (receipt["condition"], receipt["rows"], receipt["version"]) == (WHERE, len(GONE), zb.__version__)
    for files, said in ((before, receipt["before"]), (after, receipt["after"])):
        assert said == {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
    salt = bytes.fromhex(receipt["salt"])
    assert receipt["paths_sha256"] == sorted(hashlib.sha256(salt + row.path).hexdigest() for row in GONE)
    assert not [row for row in GONE if row.path.decode() in text]


def test_a_signed_receipt_can_be_checked(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    zb.erase(tmp_path / "a.parquet", WHERE, receipt=tmp_path / "receipt.json", sign=tmp_path / "key.pem")
    receipt = json.loads((tmp_path / "receipt.json").read_bytes())
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(receipt["signature"]["public_key"]))
    public.verify(bytes.fromhex(receipt["signature"]["signature"]), canonical(receipt))
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UsageError, match=r"key.pem cannot be read: expected PEM"):
        zb.erase(tmp_path / "a.parquet", "label == 'id_1'", sign=tmp_path / "key.pem")


def test_a_preset_says_where_receipts_go_and_who_signs(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    preset = tmp_path / "preset.toml"
    preset.write_text(f"[erase]\nreceipt = '{tmp_path}/r.json'\nsign = '{tmp_path}/key.pem'\n")
    command = ["erase", str(tmp_path / "a.parquet"), "--where", WHERE, "--config", str(preset)]
    found = CliRunner().invoke(app, command)
    assert (found.exit_code, "key.pem cannot be read" in found.stderr) == (2, True)
    preset.write_text(f"[erase]\nreceipt = '{tmp_path}/r.json'\n")
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "r.json").read_bytes())["rows"] == len(GONE)


def test_a_dry_run_lists_and_changes_nothing(faces: Path) -> None:
    before = files_of(faces.parent)
    found = CliRunner().invoke(app, ["erase", str(faces), "--where", WHERE, "--dry-run"])
    assert found.exit_code == 0
    assert all(row.path.decode() in found.stdout for row in GONE)
    assert files_of(faces.parent) == before


def test_what_cannot_be_erased_is_refused_and_nothing_is_done(faces: Path, tmp_path: Path) -> None:
    before = files_of(faces.parent)
    with pytest.raises(UsageError, match="none fulfils what was asked for; nothing was done"):
        zb.erase(faces, "label == 'nobody'")
    with pytest.raises(UsageError, match=r"every row of .* would be erased; delete the archive instead"):
        zb.erase(faces, "width > 0")
    with pytest.raises(UsageError, match="by a condition or by a list of their paths"):
        zb.erase(faces)
    (tmp_path / "receipt.json").write_text("of another day")
    with pytest.raises(OutputExists, match=r"receipt.json exists; choose another name for the receipt"):
        zb.erase(faces, WHERE, receipt=tmp_path / "receipt.json")
    with pytest.raises(UsageError, match="there is no directory"):
        zb.erase(faces, WHERE, receipt=tmp_path / "nowhere" / "receipt.json")
    assert files_of(faces.parent) == before


def test_an_archive_behind_a_link_is_erased_from_and_the_link_stays(faces: Path, tmp_path: Path) -> None:
    link = tmp_path / f"link{faces.suffix}"
    link.symlink_to(faces)
    report = zb.erase(link, WHERE, receipt=tmp_path / "receipt.json")
    assert link.is_symlink()
    assert rows_of(faces) == LEFT
    assert report.path == str(faces)


def test_a_receipt_that_could_not_be_written_is_refused_while_all_rows_are_there(faces: Path, tmp_path: Path) -> None:
    before = files_of(faces.parent)
    with pytest.raises(UsageError, match="its name is too long; choose another one by --receipt"):
        zb.erase(faces, WHERE, receipt=tmp_path / ("x" * 240))
    if faces.is_dir():
        with pytest.raises(UsageError, match="lies inside the archive"):
            zb.erase(faces, WHERE, receipt=faces / "receipt.json")
    assert files_of(faces.parent) == before


def test_a_directory_that_holds_other_files_is_not_replaced(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "here", ROWS, 10)
    (archive / "README").write_text("mine")
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match=r"here holds what is no part of an archive, .*: README; take it out"):
        zb.erase(archive, WHERE)
    assert files_of(tmp_path) == before


def test_a_damaged_archive_is_not_rewritten(faces: Path) -> None:
    hit = faces if faces.is_file() else faces / "part-00000.parquet"
    data = bytearray(hit.read_bytes())
    at = data.index(ROWS[1].payload)
    data[at : at + 2] = bytes(byte ^ 255 for byte in data[at : at + 2])
    hit.write_bytes(data)
    before = files_of(faces.parent)
    with pytest.raises(ArchiveError, match=r"shard 0, row \d|part-00000.parquet is damaged"):
        zb.erase(faces, paths=["000032.jpg"])
    after = files_of(faces.parent)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if b"erased" in path or b"receipt" in path]


def test_two_at_once_do_not_mix(faces: Path) -> None:
    before = files_of(faces.parent)
    with (
        open_local_staging(faces, "f" * 64, {}, True),
        pytest.raises(UsageError, match="another run is writing here"),
    ):
        zb.erase(faces, WHERE)
    assert files_of(faces.parent) == before


def test_a_list_of_paths(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "paths.txt").write_text("\ufeff000001.jpg\nnobody.jpg\r\n\n000040.jpg\n")
    command = ["erase", str(faces), "--paths", str(tmp_path / "paths.txt")]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith("2 files erased from")
    assert "1 path of those asked for are not in it" in found.stdout
    assert rows_of(faces) == ROWS[1:-1]
    assert CliRunner().invoke(app, command).exit_code == 2


def test_a_reader_that_had_read_a_part_that_stays_reads_it_again(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", ROWS, 10)
    with ArchiveReader.open(tmp_path / "a") as opened:
        zb.erase(tmp_path / "a", paths=["000012.jpg"])
        assert opened.read_rows(0) == ROWS[:10]


@pytest.mark.parametrize("name", ["b.parquet", "b"])
def test_of_an_archive_in_a_store(name: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "a.parquet", ROWS, 10, info_for(model_files={"latent": MODEL}))
    zb.merge([tmp_path / "a.parquet"], s3.uri(name))
    report = zb.erase(s3.uri(name), WHERE)
    assert rows_of(s3.at(name)) == LEFT
    receipt = json.loads(Path(report.receipt or "").read_bytes())
    assert {one: facts["sha256"] for one, facts in receipt["after"].items()} == {
        one or name: hashlib.sha256(data).hexdigest() for one, data in content(s3.at(name)).items()
    }
    assert zb.verify(s3.uri(name)).exit_code == 0
    assert [info.base_name for info in listed(s3.at(name).parent)] == [name]
