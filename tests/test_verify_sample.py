"""verify --sample: some rows, chosen at random, are checked and no file as a whole."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rows import face_rows, rows_of, write_archive
from typer.testing import CliRunner

from zippy_batch.api import verify
from zippy_batch.cli.app import app
from zippy_batch.errors import StorageError, UsageError

ROWS = face_rows(200)


def spoil(path: Path, payload: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(payload)
    data[at : at + 2] = bytes(byte ^ 255 for byte in data[at : at + 2])
    path.write_bytes(data)


def test_a_sample_has_as_many_rows_as_were_asked_for(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", ROWS, 30)
    report = verify(tmp_path / "a", sample=50)
    assert (report.rows, report.sampled, report.exit_code) == (200, 50, 0)
    assert report.run is not None
    assert report.run.images == 50
    assert 0 < report.checked_bytes < sum(len(row.payload) for row in rows_of(tmp_path / "a"))
    assert report.lines()[-1].endswith("has no damage in the sample")
    assert verify(tmp_path / "a", sample=10_000).sampled == 200


def test_a_sample_of_all_rows_finds_damage(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS, 30)
    spoil(tmp_path / "a.parquet", ROWS[77].payload)
    report = verify(tmp_path / "a.parquet", sample=200)
    assert report.exit_code == 1
    assert "000078.jpg" in {finding.path for finding in report.damaged}


def test_the_report_says_megabytes_a_second(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    report = verify(tmp_path / "a.parquet")
    assert report.checked_bytes == (tmp_path / "a.parquet").stat().st_size
    assert report.lines()[1].endswith(" MB/s")
    found = CliRunner().invoke(
        app, ["verify", str(tmp_path / "a.parquet"), "--sample", "5", "--json", "--workers", "1"]
    )
    assert json.loads(found.stdout)["sampled"] == 5


def test_a_sample_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.parquet", ROWS)
    with pytest.raises(UsageError, match="leave out one of the two"):
        verify(tmp_path / "a.parquet", against=tmp_path, sample=5)
    found = CliRunner().invoke(app, ["verify", str(tmp_path / "a.parquet"), "--sample", "0"])
    assert (found.exit_code, found.stderr) == (2, "error: --sample must be 1 or more, not 0\n")


@dataclass
class Web:
    """Serves a directory, whole files or ranges of their bytes."""

    folder: Path
    address: str = ""
    has_ranges: bool = True
    refuses_by: int = 0
    """Status of every answer, where it is not 0."""
    sent: list[int] = field(default_factory=list)
    """Bytes of each answer."""


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *rest: Any) -> None:
        self.web = web
        super().__init__(*rest)

    def log_message(self, *rest: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.web.folder / self.path.lstrip("/")
        if self.web.refuses_by or not file.is_file():
            self.send_error(self.web.refuses_by or 404)
            return
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
        if asked and self.web.has_ranges:
            start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.web.sent.append(len(data))
            self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *rest: object) -> None:
        """Whoever hangs up is not told of."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("fsspec reads no web without aiohttp")
    made = Web(tmp_path)
    with Server(("127.0.0.1", 0), functools.partial(Answer, made)) as server:
        made.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


def test_an_archive_on_the_web_is_read_by_ranges(web: Web) -> None:
    rows = face_rows(4000)
    write_archive(web.folder / "a.parquet", rows, 1000)
    size_bytes = (web.folder / "a.parquet").stat().st_size
    assert verify(f"{web.address}/a.parquet").exit_code == 0
    assert size_bytes < sum(web.sent) < 1.5 * size_bytes
    web.sent.clear()
    assert verify(f"{web.address}/a.parquet", sample=1).exit_code == 0
    assert sum(web.sent) < size_bytes // 2
    spoil(web.folder / "a.parquet", rows[77].payload)
    assert [finding.path for finding in verify(f"{web.address}/a.parquet").damaged] == ["000078.jpg"]
    with pytest.raises(UsageError, match="there is no archive"):
        verify(f"{web.address}/b.parquet")


def test_a_server_that_sends_whole_files_is_named(web: Web) -> None:
    web.has_ranges = False
    write_archive(web.folder / "a.parquet", face_rows(1000), 500)
    with pytest.raises(StorageError, match="does not answer requests for a range of bytes; download the file"):
        verify(f"{web.address}/a.parquet")


def test_a_server_that_refuses_or_is_not_there_is_not_taken_for_one_without_the_archive(web: Web) -> None:
    write_archive(web.folder / "a.parquet", face_rows(10), 10)
    web.refuses_by = 403
    with pytest.raises(StorageError, match=r"a.parquet: the store refuses access .HTTP status 403."):
        verify(f"{web.address}/a.parquet")
    web.refuses_by = 500
    with pytest.raises(StorageError, match=r"a.parquet: the store reports HTTP status 500; run the same command again"):
        verify(f"{web.address}/a.parquet")
    with pytest.raises(StorageError, match=r"x.parquet: the store reports Cannot connect"):
        verify("http://127.0.0.1:1/x.parquet")
