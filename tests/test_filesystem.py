"""Archives as file systems of fsspec, and as data sets of Hugging Face, which open members by them."""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_faces import draw_faces
from typer.testing import CliRunner

import zippy_batch as zb
from zippy_batch.cli.app import app

GOLDEN = Path(__file__).parent / "golden"
ONE = GOLDEN / "v3.parquet"


@pytest.fixture(autouse=True)
def known_protocol() -> None:
    zb.filesystem.register()


@pytest.fixture(params=["v3.parquet", "v3"])
def golden(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@pytest.fixture
def files(golden: Path) -> zb.filesystem.ZippyFileSystem:
    return fsspec.url_to_fs(f"zippy://::file://{golden}")[0]


def test_a_member_is_opened_by_its_url(golden: Path) -> None:
    with zb.open(golden, device="cpu") as archive:
        for path in ("tall.png", "faces/face_00001.jpg", "exact-grey.jpg", "notes.txt"):
            for url in (f"zippy://{path}::file://{golden}", f"zippy://{path}::{golden}"):
                with fsspec.open(url) as file:
                    assert file.read() == archive[path].bytes()


def test_it_lists_as_a_directory_does(files: Any) -> None:
    assert len(files.find("")) == 20
    assert files.ls("faces", detail=False) == [f"faces/face_0000{i}.jpg" for i in range(4)]
    assert files.ls("tall.png", detail=False) == ["tall.png"]
    assert files.glob("tail-*.jpg") == [f"tail-{i}.jpg" for i in range(4)]
    assert "faces" in files.ls("", detail=False)
    assert (files.isdir("faces"), files.isfile("faces"), files.exists("faces")) == (True, False, True)
    assert (files.isdir("tall.png"), files.isfile("tall.png"), files.exists("nobody")) == (False, True, False)
    sizes = {one["name"]: one["size"] for one in files.ls("")}
    assert sizes["notes.txt"] == 13
    assert sizes["tall.png"] is None
    assert files.info("tall.png")["size"] == files.size("tall.png") == len(files.cat("tall.png"))
    assert (files.info("tall.png")["mode"], files.info("faces")["mode"]) == (0o444, 0o555)
    with zb.open(ONE) as archive:
        assert files.info("notes.txt")["mtime"] == archive["notes.txt"].columns["mtime_s"]
    with pytest.raises(FileNotFoundError):
        files.ls("nowhere")


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="no /dev/fuse")
def test_a_mount_shows_the_files(tmp_path: Path) -> None:
    try:
        importlib.import_module("fuse")
    except (ImportError, OSError):
        pytest.skip("fusepy, or libfuse 2, is not installed")
    script = (
        "import sys, fsspec, fsspec.fuse, zippy_batch as zb\n"
        "zb.filesystem.register()\n"
        "fsspec.fuse.run(fsspec.url_to_fs(sys.argv[1])[0], '', sys.argv[2])"
    )
    mount = tmp_path / "mount"
    mount.mkdir()
    done = subprocess.Popen([sys.executable, "-c", script, f"zippy://::file://{ONE}", str(mount)])
    try:
        for _ in range(600):
            if mount.is_mount() or done.poll() is not None:
                break
            time.sleep(0.1)
        assert done.poll() is None
        assert sorted(os.listdir(mount / "faces")) == [f"face_0000{i}.jpg" for i in range(4)]
        assert (mount / "tall.png").read_bytes() == zb.open(ONE, device="cpu")["tall.png"].bytes()
        with pytest.raises(OSError, match="Read-only"):
            (mount / "new.jpg").write_bytes(b"new")
    finally:
        subprocess.run(["umount", mount], check=False)
        done.terminate()
        done.wait()


def test_several_files_are_read_at_once(files: Any) -> None:
    names = files.ls("faces", detail=False)
    found = files.cat(names)
    assert list(found) == names
    assert all(found[name] == files.cat(name) for name in names)
    assert files.cat_file("notes.txt", 4, 6) == b"an"
    with pytest.raises(FileNotFoundError):
        files.cat("nobody.jpg")


def test_it_is_read_only_and_pickles(files: Any, tmp_path: Path) -> None:
    changes = (
        lambda: files.open("new.jpg", "wb"),
        lambda: files.touch("notes.txt"),
        lambda: files.mkdir("new"),
        lambda: files.rm("notes.txt"),
        lambda: files.mv("notes.txt", "new.txt"),
        lambda: files.pipe("new.jpg", b"new"),
        lambda: files.put(__file__, "new.py"),
    )
    for change in changes:
        with pytest.raises(OSError, match="read-only") as raised:
            change()
        assert raised.value.errno == errno.EROFS
    assert pickle.loads(pickle.dumps(files)).cat("notes.txt") == b"not an image\n"
    files.get("faces/", str(tmp_path / "out"), recursive=True)
    assert len([*(tmp_path / "out").rglob("*.jpg")]) == 4
    arrow = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(files))
    assert arrow.open_input_file("notes.txt").read() == b"not an image\n"


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(zb.UsageError, match="no archive"):
        fsspec.url_to_fs(f"zippy://a.jpg::file://{tmp_path}/none.parquet")
    with pytest.raises(zb.UsageError, match="of which archive"):
        fsspec.filesystem("zippy")
    with pytest.raises(zb.UsageError, match="takes no options"):
        fsspec.filesystem("zippy", fo="x", target_options={"key": "a"})


def test_the_package_makes_its_protocol_known(root: Path) -> None:
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["fsspec.specs"]
    module, _, name = points["zippy"].partition(":")
    assert getattr(zb.filesystem, name).__module__ == module


# ---- Hugging Face ----


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 faces of two classes, one with a name that no URL has, and a text file."""
    base = tmp_path_factory.mktemp("hf")
    for seed, label in enumerate("ab"):
        draw_faces(base / "faces" / label, 10, seed=seed)
    (base / "faces" / "b" / "face_00009.jpg").rename(base / "faces" / "b" / "what?.jpg")
    (base / "faces" / "notes.txt").write_text("no picture")
    zb.archive(base / "faces", base / "faces.parquet", labels="folders", workers=1, device="cpu")
    return base / "faces.parquet"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return pytest.importorskip("datasets")


def test_a_dataset_decodes_pictures_when_they_are_looked_at(labelled: Path, datasets: Any) -> None:
    found = zb.hf.load(labelled)
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"].names == ["a", "b"]
    assert len(found) == 20
    with zb.open(labelled, device="cpu") as archive:
        for place in (0, 12, 19):
            path = found[place]["path"]
            assert found[place]["label"] == int(path.startswith("b/"))
            stored = archive[path].pixels.astype(int)
            assert np.abs(np.asarray(found[place]["image"].convert("RGB")).astype(int) - stored).mean() < 8
        embedded = datasets.table.embed_table_storage(found.data.table)["image"].to_pylist()
        assert embedded[3]["bytes"] == archive[found[3]["path"]].bytes()
    assert found[19]["path"] == "b/what?.jpg"


def test_a_stream_gives_the_same_in_shards(labelled: Path, datasets: Any) -> None:
    found = zb.hf.load(labelled, where="label == 'b'", streaming=True)
    assert found.num_shards == 10
    rows = list(found)
    assert [row["path"] for row in rows] == zb.hf.load(labelled, where="label == 'b'")["path"][:]
    assert {row["label"] for row in rows} == {1}
    assert rows[0]["image"].size == (42, 42)
    assert len(list(found.shard(2, 0))) == 5
    assert "label" not in zb.hf.load(GOLDEN / "v3").features


def test_an_export_holds_plain_files(labelled: Path, tmp_path: Path) -> None:
    assert zb.hf.export(labelled, tmp_path / "out", where="label == 'b'", parts=3) == 10
    parts = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in parts] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
    with zb.open(labelled, device="cpu") as archive:
        assert {row["path"]: row["image"]["bytes"] for row in rows} == {
            file.path: file.bytes() for file in archive.rows(where="label == 'b'")
        }
    assert {row["label"] for row in rows} == {1}
    assert rows[-1]["image"]["path"] == "what?.jpg"
    with pytest.raises(zb.OutputExists, match="is there already"):
        zb.hf.export(labelled, tmp_path / "out")
    with pytest.raises(zb.ArchiveError, match="no picture to export"):
        zb.hf.export(labelled, tmp_path / "none", where="psnr > 1000")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_datasets_reads_an_export(labelled: Path, datasets: Any, tmp_path: Path) -> None:
    zb.hf.export(labelled, tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 20
    assert found.features["label"].names == ["a", "b"]
    assert found[0]["image"].size == (42, 42)


def test_the_command_exports(labelled: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    found = CliRunner().invoke(app, ["export", "hf", str(labelled), out, "--where", "label == 'a'"])
    assert (found.exit_code, found.stdout) == (0, f"10 pictures in {out}\n")
    for wrong, said in (
        (["zip", str(labelled), out], "no form 'zip'"),
        (["hf", str(labelled), out], "is there already"),
        (["hf", str(labelled), out + "2", "--parts", "0"], "--parts is 1 or more"),
        (["hf", str(tmp_path / "none"), out + "2"], "no archive"),
    ):
        refused = CliRunner().invoke(app, ["export", *wrong])
        assert refused.exit_code == 2
        assert said in refused.stderr
