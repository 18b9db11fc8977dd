"""`zippy-batch serve`: what the gallery shows, and to whom."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import EVIL, Tab, chromium, run
from PIL import Image
from rows import face_rows, info_for, labelled, mixed_rows
from synthetic_faces import draw_faces

import zippy_batch as zb
from zippy_batch.archives.writer import write_part
from zippy_batch.errors import UsageError
from zippy_batch.views.gallery import MOST_ROWS, ORDERS, Gallery, Search
from zippy_batch.views.server import GalleryServer


@contextmanager
def served(archive: Path) -> Iterator[GalleryServer]:
    with zb.open(archive, device="cpu") as opened, GalleryServer(Gallery(opened), str(archive), 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight faces, a picture with alpha and a text file; a label that would be markup."""
    root = tmp_path_factory.mktemp("gallery")
    draw_faces(root / "faces" / "anna", 5)
    draw_faces(root / "faces" / EVIL.replace("/", ""), 3, seed=1)
    Image.new("RGBA", (30, 20), (200, 0, 0, 90)).save(root / "faces" / "anna" / "clear.png")
    (root / "faces" / "anna" / "notes.txt").write_text("hello")
    path = root / "faces.parquet"
    zb.archive(root / "faces", path, quality=40, labels="folders", workers=1, exact="never", device="cpu")
    return path


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[GalleryServer]:
    with served(archive) as one:
        yield one


def get(
    server: GalleryServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def rows(server: GalleryServer, query: str) -> Any:
    answer, body = get(server, f"/rows?{query}")
    return answer.status, json.loads(body)


def test_it_pages_filters_and_sorts(server: GalleryServer) -> None:
    status, found = rows(server, "where=psnr+is+not+None&order=worst&start=2&count=3")
    assert (status, found["total"], len(found["rows"])) == (200, 8, 3)
    decibels = [row["psnr"] for row in found["rows"]]
    assert decibels == sorted(decibels)
    every = rows(server, "count=100")[1]["rows"]
    assert [row["number"] for row in every] == list(range(10))
    assert rows(server, "start=10")[1]["rows"] == []
    assert rows(server, "where=label%3D'anna'")[1]["total"] == 7


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_has_every_row_once_and_what_is_unknown_last(server: GalleryServer, order: str) -> None:
    found = rows(server, f"order={order}&count=100")[1]["rows"]
    assert sorted(row["number"] for row in found) == list(range(10))
    if order in ("worst", "best", "ssim"):
        assert [row["psnr"] is None for row in found] == [False] * 8 + [True] * 2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("where=nothing+%3C+3", "there is no column 'nothing'"),
        ("where=__import__('os')", "not understood"),
        ("order=random", "there is no order 'random'"),
    ],
)
def test_what_is_not_understood_is_said(server: GalleryServer, query: str, said: str) -> None:
    status, found = rows(server, query)
    assert status == 400
    assert said in found["error"]


def test_pictures_come_as_they_are_restored_and_others_say_why_not(server: GalleryServer, archive: Path) -> None:
    opened = zb.open(archive, device="cpu")
    for number, file in enumerate(opened):
        answer, body = get(server, f"/thumb/{number}")
        kind = answer.getheader("Content-Type")
        assert answer.status == 200
        assert kind == ("image/svg+xml" if file.path.endswith(".txt") else "image/png" if "clear" in file.path
                        else "image/jpeg")  # fmt: skip
        assert (body == file.bytes()) == (kind != "image/svg+xml")
    assert get(server, "/picture/0")[1] == opened[0].bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/thumb/10", "/thumb/-1", "/thumb/%31", "/thumb/0/..", "/picture/", "/../../etc/passwd", "/%2e%2e/etc/passwd",
        "/faces.parquet", "/gallery.py", "/gallery.html", "//etc/passwd", "/thumb/999999999999999999999", "/thumb/٣",
    ],
)  # fmt: skip
def test_no_path_reaches_the_disk(server: GalleryServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert re.match(rb"HTTP/1.1 (404|400) ", answer), answer[:100]
    assert b"root:" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.nip.io", "",
                                  "192.168.0.1", "localhost:80:80"])  # fmt: skip
def test_only_this_machine_is_a_host(server: GalleryServer, host: str) -> None:
    assert get(server, "/", Host=host)[0].status == 403
    assert get(server, "/thumb/0", Host=host)[0].status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:8765"])
def test_this_machine_has_several_names_and_a_tunnel_any_port(server: GalleryServer, host: str) -> None:
    assert get(server, "/", Host=host)[0].status == 200


def test_pages_of_other_sites_get_nothing(server: GalleryServer) -> None:
    for site in ("cross-site", "same-site"):
        assert get(server, "/thumb/0", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0].status == 403
    assert get(server, "/thumb/0", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors")[0].status == 200
    assert get(server, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0].status == 200


def test_every_answer_says_how_little_it_may_do(server: GalleryServer) -> None:
    for path in ("/", "/page.css", "/gallery.js", "/rows", "/thumb/0", "/nothing"):
        answer, _ = get(server, path)
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert (answer.getheader("Content-Security-Policy") or "").startswith("default-src 'none'")
        assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        assert not answer.getheader("Access-Control-Allow-Origin")


def test_it_is_read_only(server: GalleryServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer, body = get(server, "/rows", method)
        assert (answer.status, body) == (405, b"this gallery is read-only")
    answer, body = get(server, "/", "HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.getheader("Content-Length") or 0) > 500


def test_it_listens_on_loopback_alone(server: GalleryServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_the_page_holds_the_name_as_text(tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace('/', '')}.parquet"
    write_part(path, [], info_for(0))
    with served(path) as server:
        page = get(server, "/")[1].decode()
        assert rows(server, "")[1] == {"total": 0, "start": 0, "rows": []}
    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_rows_of_any_kind_have_facts_and_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    write_part(path, labelled(mixed_rows(40)), info_for(40))
    with served(path) as server:
        found = rows(server, "count=40")[1]["rows"]
        assert len(found) == 40
        assert any("\\xff\\xfe" in row["path"] for row in found)
        answer, body = get(server, "/thumb/0")
        # made by a model that is not here
        assert answer.getheader("Content-Type") == "image/svg+xml"
        assert b"<text" in body


def test_thousands_of_rows_come_in_pages(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    write_part(path, face_rows(5000), info_for(5000))
    with zb.open(path) as opened:
        gallery = Gallery(opened)
        seen: list[int] = []
        while len(seen) < 5000:
            page = gallery.rows(Search(order="worst"), len(seen), 10**9)
            assert 0 < len(page["rows"]) <= MOST_ROWS
            seen += [row["number"] for row in page["rows"]]
        assert sorted(seen) == list(range(5000))


def test_pictures_of_a_page_are_decoded_together(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zb.open(archive, device="cpu") as opened:
        gallery = Gallery(opened)
        calls: list[list[int]] = []
        decoded = gallery._decoded

        def counted(numbers: Sequence[int]) -> Any:
            calls.append([*numbers])
            return decoded(numbers)

        monkeypatch.setattr(gallery, "_decoded", counted)
        page = gallery.rows(Search(order="best"), 0, 60)["rows"]
        for row in page:
            gallery.thumb(row["number"])
    assert [sorted(numbers) for numbers in calls] == [list(range(10))]


def test_one_row_that_cannot_be_decoded_costs_no_other(archive: Path, tmp_path: Path) -> None:
    with zb.open(archive, device="cpu") as opened:
        kept = [file.row for file in opened][:3]
        info = opened.info
    kept[1] = replace(kept[1], payload=b"\x00")
    path = tmp_path / "damaged.parquet"
    write_part(path, kept, replace(info, shards=(3,), models={"latent": info.models["latent"]}))
    with zb.open(path, device="cpu") as opened:
        gallery = Gallery(opened)
        gallery.rows(Search(), 0, 60)
        assert [isinstance(gallery.thumb(number), str) for number in range(3)] == [False, True, False]


def test_a_port_in_use_is_one_line(server: GalleryServer, archive: Path) -> None:
    code, said = run("serve", archive, "--port", server.server_port)
    assert code == 2
    assert said == (
        f"error: port {server.server_port} is in use; name another with --port, or 0 for any that is free\n"
    )


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_number_of_16_bits(archive: Path, port: int) -> None:
    with zb.open(archive) as opened, pytest.raises(UsageError, match="from 0 to 65535"):
        GalleryServer(Gallery(opened), "x", port)


def test_an_interrupt_ends_it_with_success(archive: Path) -> None:
    program = [sys.executable, "-m", "zippy_batch", "serve", str(archive), "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        said = process.stdout.readline()
        port = re.match(r"http://127\.0\.0\.1:(\d+)/ shows the 10 files of ", said)
        assert port, said + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=30)
        connection.request("GET", "/rows")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
        connection.close()


def test_a_browser_shows_the_gallery_and_complains_of_nothing(server: GalleryServer, tmp_path: Path) -> None:
    done = chromium(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400", "--virtual-time-budget=8000",
                    "--dump-dom", f"{server.url}?order=worst")  # fmt: skip
    assert "CONSOLE" not in done.stderr
    shown = re.findall(r'<img [^>]*src="thumb/(\d+)"', done.stdout)
    assert sorted(map(int, shown)) == list(range(10))
    assert "That is all." in done.stdout
    assert "<script>window.hacked" not in done.stdout


def test_the_enlarged_view_is_used_by_the_keyboard_alone(server: GalleryServer, tmp_path: Path) -> None:
    shown = "document.querySelector('dialog[open] p')?.textContent.split(' ')[0] ?? ''"
    _, found = rows(server, "order=worst&count=60")
    paths = [row["path"].split(" ")[0] for row in found["rows"]]
    with Tab(tmp_path / "profile", f"{server.url}?order=worst") as tab:
        tab.wait("document.querySelectorAll('button.pic').length === 10")
        tab.ask("document.querySelectorAll('button.pic')[8].focus()")
        tab.press("Enter")
        tab.wait(f"({shown}) === {json.dumps(paths[8])}")
        tab.press("ArrowRight")
        tab.wait(f"({shown}) === {json.dumps(paths[9])}")
        # there is nothing behind the last one, and nothing before the first
        tab.press("ArrowRight")
        assert tab.ask(shown) == paths[9]
        for _ in range(12):
            tab.press("ArrowLeft")
        tab.wait(f"({shown}) === {json.dumps(paths[0])}")
        tab.press("Escape")
        focused = "[...document.querySelectorAll('button.pic')].indexOf(document.activeElement)"
        tab.wait(f"({shown}) === '' && {focused} === 0")
        # keys in the condition are the condition's
        tab.ask("document.querySelector('[name=where]').focus()")
        tab.press("ArrowRight")
        assert tab.ask(shown) == ""
