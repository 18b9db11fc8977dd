"""What is in an archive can be seen without restoring it."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import zippy_batch as zb
from zippy_batch.archives.part_file import open_file
from zippy_batch.cli.app import app
from zippy_batch.views.gallery import Gallery, Search
from zippy_batch.views.server import GalleryServer

GOLDEN = Path(__file__).parent / "golden"
ONE = GOLDEN / "v3.parquet"


@pytest.fixture(params=["v3.parquet", "v3"])
def golden(request: pytest.FixtureRequest) -> str:
    return str(GOLDEN / request.param)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_ls_lists_the_paths_in_order_on_a_line_each(golden: str) -> None:
    lines = run("ls", golden).stdout.splitlines()
    assert len(lines) == 20
    assert "notes.txt" in lines
    assert lines[0] == "caf\\xe9.jpg"


def test_ls_filters_sorts_and_limits(golden: str) -> None:
    found = json.loads(run("ls", golden, "--json", "--sort", "psnr", "--limit", "3", "--where", "psnr > 0").stdout)
    quality = [row["psnr"] for row in found]
    assert len(quality) == 3
    assert quality == sorted(zb.open(golden).rows("psnr > 0").column("psnr"))[:3]
    last = json.loads(run("ls", golden, "--json", "--sort", "-psnr").stdout)
    assert last[0]["psnr"] == max(row["psnr"] for row in last if row["psnr"] is not None)
    assert last[-1]["psnr"] is None
    both = run("ls", golden, "--select", "tail-0.jpg", "--select", "notes.txt").stdout.splitlines()
    assert both == ["notes.txt", "tail-0.jpg"]


def test_ls_in_long_has_sizes_codec_and_quality(golden: str) -> None:
    (line,) = run("ls", golden, "-l", "--select", "notes.txt").stdout.splitlines()
    assert line.split() == ["13", "-", "raw", "-", "-", "notes.txt"]


def test_ls_of_nothing_prints_nothing(golden: str) -> None:
    for flags in ([], ["-l"]):
        found = run("ls", golden, "--where", "psnr > 98.5", *flags)
        assert (found.exit_code, found.stdout) == (0, "")


def test_a_wrong_column_or_limit_is_one_line(golden: str) -> None:
    for flags, said in ((["--sort", "beauty"], "no column 'beauty'"), (["--limit", "-1"], "--limit is 0 or more")):
        found = run("ls", golden, *flags)
        assert found.exit_code == 2
        assert said in found.stderr
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("path", ["notes.txt", "grey.jpg", "exact-grey.jpg", "caf\\xe9.jpg", "caf\udce9.jpg"])
def test_cat_writes_what_restore_writes(golden: str, path: str) -> None:
    with zb.open(golden, device="cpu") as archive:
        wanted = archive[path.replace("\\xe9", "\udce9")].bytes()
    assert run("cat", golden, path).stdout_bytes == wanted


def test_cat_names_what_is_near_an_unknown_path(golden: str) -> None:
    for path in ("nots.txt", "folder/notes.txt"):
        found = run("cat", golden, path)
        assert found.exit_code == 2
        assert "did you mean notes.txt" in found.stderr
        assert not found.stdout_bytes
    assert "zippy-batch ls" in run("cat", golden, "0" * 30).stderr


def test_raw_rows_and_lists_need_no_network(golden: str) -> None:
    script = (
        "import sys; from zippy_batch.cli.app import app\n"
        "try: app()\n"
        "finally: sys.stderr.write(str([m for m in ('torch', 'numba', 'ray', 'pandas', 'PIL') if m in sys.modules]))"
    )
    for words in (["cat", golden, "notes.txt"], ["ls", golden, "-l", "--where", "psnr > 20"]):
        found = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=True)
        assert found.stderr == b"[]"


def test_cat_into_a_pipe_that_nobody_reads_is_quiet(golden: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "zippy_batch", "cat", golden, "notes.txt"]
    with os.fdopen(writing, "wb") as pipe:
        found = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


def test_cat_refuses_a_terminal(golden: str) -> None:
    reading, terminal = os.openpty()
    command = [sys.executable, "-m", "zippy_batch", "cat", golden, "notes.txt"]
    with os.fdopen(terminal, "wb", buffering=0) as stdout, os.fdopen(reading, "rb", buffering=0) as screen:
        refused = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False)
        assert refused.returncode == 2
        assert b"--force" in refused.stderr
        assert subprocess.run([*command, "--force"], stdout=stdout, check=False).returncode == 0
        assert screen.read(100).startswith(b"not an image")


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("JPG", b"\xff\xd8"), ("webp", b"RIFF")])
def test_a_sheet_is_what_its_name_says_and_replaces_nothing_unasked(suffix: str, begins: bytes, tmp_path: Path) -> None:
    out = tmp_path / f"sheet.{suffix}"
    words = ("show", str(ONE), "-o", str(out), "--worst", "5", "--columns", "3", "--device", "cpu")
    assert run(*words).exit_code == 0
    before = out.read_bytes()
    assert before.startswith(begins)
    assert run(*words).exit_code == 2
    assert out.read_bytes() == before
    assert run(*words, "--overwrite").exit_code == 0
    assert [one.name for one in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--where", "psnr > 98.5"], "there is no file to show"),
        (["--limit", "0"], "there is no file to show"),
        (["--columns", "0"], "--columns is 1 or more"),
        (["--against", "nowhere"], "--against nowhere: there is no such directory"),
        (["--device", "moon"], "--device must be one of auto, cpu, cuda, not 'moon'"),
        (["-o", "sheet.gif"], "expected a name that ends in .png, .jpg, .jpeg, .webp"),
        (["-o", "no/sheet.png"], "there is no directory no"),
    ],
)
def test_a_sheet_that_cannot_be_is_one_line_and_no_file(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("show", str(ONE), "-o", "sheet.png", *flags)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_sheet_has_the_worst_first_and_originals_beside_them(golden: str, tmp_path: Path) -> None:
    import numpy as np

    with zb.open(golden, device="cpu") as archive:
        worst = archive.rows("psnr > 0").column("psnr").index(min(archive.rows("psnr > 0").column("psnr")))
        (first,) = archive.rows("psnr > 0").numbers[worst : worst + 1]
        original = tmp_path / archive[first].path
        original.parent.mkdir(parents=True, exist_ok=True)
        original.write_bytes(archive[first].bytes())
        alone = zb.sheet(archive, worst=1)
        assert alone.tobytes() == zb.sheet(archive[[first]]).tobytes()
        beside = np.asarray(zb.sheet(archive, worst=1, against=tmp_path))
        side = (beside.shape[1] - 2 * 8 - 2) // 2
        left, right = beside[:, 8 : 8 + side], beside[:, 8 + side + 2 : 8 + 2 * side + 2]
        assert np.array_equal(left[:side], right[:side])
        assert zb.sheet(archive.rows(select="notes.txt"), against=tmp_path).mode == "RGB"
        everything = zb.sheet(golden, columns=4, limit=7)
        assert everything.width > 2 * alone.width
        for wrong in ({"worst": 0}, {"limit": 2001}, {"columns": 0}):
            with pytest.raises(zb.UsageError, match=next(iter(wrong))):
                zb.sheet(archive, **wrong)  # type: ignore[arg-type]


def test_cat_decodes_where_it_is_told_to(golden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no usable GPU" in run("cat", golden, "grey.jpg", "--device", "cuda").stderr
    wanted = run("cat", golden, "grey.jpg").stdout_bytes
    assert run("cat", golden, "grey.jpg", "--device", "auto").stdout_bytes == wanted


def damaged(path: Path, column: str, flips: int = 4) -> Path:
    """The golden archive with so many bytes changed in the middle of a column of its first row group. One is put right
    where it is met."""
    found = open_file(ONE).groups[0].chunks[column]
    data = bytearray(ONE.read_bytes())
    for at in range(flips):
        data[(found.start + found.stop) // 2 + at] ^= 0x55
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("column", "flips"), [("payload", 1), ("payload", 4), ("psnr", 4), ("path", 4), ("source_bytes", 4), ("codec", 4)]
)
def test_what_is_left_of_a_damaged_archive_is_shown_and_what_is_not_is_said(
    column: str, flips: int, tmp_path: Path
) -> None:
    archive = damaged(tmp_path / "damaged.parquet", column, flips)
    done = run("report", str(archive), "-o", f"{tmp_path}/page.html", "--images", "30", "--device", "cpu")
    assert done.exit_code == 1
    assert f"{archive} is damaged, and the page shows what can be read: " in done.stderr
    assert f"{column} of row group 0" in done.stderr or "is put right" in done.stderr
    assert done.stderr.count("\n") == 1
    # what is damaged may lie in no picture
    assert run("show", str(archive), "-o", f"{tmp_path}/s.png").exit_code in (
        (0, 1) if column == "source_bytes" else (1,)
    )
    assert (tmp_path / "s.png").exists()
    page = (tmp_path / "page.html").read_text()
    assert 'id="damage"' in page
    assert page.count("<img") >= 10
    with zb.open(archive, device="cpu", keep_going=True) as opened:
        gallery = Gallery(opened)
        rows = gallery.rows(Search(order="worst"), 0, 60)["rows"]
        assert sorted(row["number"] for row in rows) == list(range(20))
        assert sum(not isinstance(gallery.thumb(row["number"]), str) for row in rows) >= 5


def test_ls_and_cat_of_a_damaged_archive_give_what_is_there(tmp_path: Path) -> None:
    archive = damaged(tmp_path / "damaged.parquet", "psnr")
    wanted = {path: run("cat", str(ONE), path).stdout_bytes for path in ("notes.txt", "grey.jpg")}
    assert {path: run("cat", str(archive), path).stdout_bytes for path in wanted} == wanted
    short, long = run("ls", str(archive)), run("ls", str(archive), "-l")
    assert (short.exit_code, len(short.stdout.splitlines())) == (0, 20)
    assert (long.exit_code, len(long.stdout.splitlines())) == (1, 20)
    assert "column psnr of row group 0" in long.stderr
    lost = damaged(tmp_path / "lost.parquet", "payload")
    codes = {path: run("cat", str(lost), path).exit_code for path in run("ls", str(lost)).stdout.splitlines()}
    assert set(codes.values()) == {0, 1}


def test_a_gallery_of_an_archive_without_a_part_names_it(tmp_path: Path) -> None:
    archive = tmp_path / "parts"
    shutil.copytree(GOLDEN / "v3", archive)
    missing = sorted(archive.glob("part-*.parquet"))[-1]
    missing.unlink()
    assert f"{missing} is missing" in run("report", str(archive), "-o", str(tmp_path / "page.html")).stderr
    assert f"{missing} is missing" in (tmp_path / "page.html").read_text()
    found = run("ls", str(archive))
    assert (found.exit_code, len(found.stdout.splitlines())) == (1, 20)
    there = found.stdout.splitlines()[0]
    assert run("cat", str(archive), there).stdout_bytes == run("cat", str(ONE), there).stdout_bytes != b""
    assert run("cat", str(archive), found.stdout.splitlines()[-1]).exit_code != 0
    with zb.open(archive, device="cpu", keep_going=True) as opened, GalleryServer(Gallery(opened), "x", 0) as server:
        lost = opened.info.shards[-1]
        assert [path.startswith("damaged-names/") for path in opened.paths] == [False] * (20 - lost) + [True] * lost
        assert f"{missing} is missing" in server_front(server)
        assert zb.sheet(opened, columns=5).width > 5 * 128


def server_front(server: GalleryServer) -> str:
    import threading
    import urllib.request

    threading.Thread(target=server.handle_request, daemon=True).start()
    with urllib.request.urlopen(server.url) as answer:
        return html.unescape(answer.read().decode())
