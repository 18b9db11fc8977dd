"""A gallery on a local port, for the browser of this machine: read-only, and for nobody else.

It listens on the loopback interface alone. A request must name this machine as its host, so that no page from elsewhere
reads pictures by a name that it lets point here (DNS rebinding), and may not come from another site's page. Rows are
asked for by number, and the few other files by their names in a table: no part of a URL becomes a path.
"""

from __future__ import annotations

import errno
import html
import json
import logging
import re
import socketserver
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import UsageError, ZippyError
from zippy_batch.run.copy_rows import shown_place
from zippy_batch.run.report import count_text
from zippy_batch.stores.object_path import Place, place
from zippy_batch.views.gallery import ORDERS, Gallery, Search
from zippy_batch.views.listing import damage_text
from zippy_batch.views.markup import text_of
from zippy_batch.views.report_page import asset, damage_list
from zippy_batch.views.web_image import WebImage

LOOPBACK = "127.0.0.1"
_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_PICTURE = re.compile(r"/(thumb|picture)/([0-9]{1,15})")
_IDLE_S = 30
"""After so many seconds without a request a connection is closed."""
_PAGE_ROWS = 60
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ASSETS = {"/page.css": "text/css; charset=utf-8", "/gallery.js": "text/javascript; charset=utf-8"}
_TEXT, _JSON, _HTML = "text/plain; charset=utf-8", "application/json", "text/html; charset=utf-8"

_log = logging.getLogger(__name__)


class GalleryServer(ThreadingHTTPServer):
    """Serves one gallery until it is shut down. Raises UsageError where the port cannot be had."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, gallery: Gallery, name: str, port: int) -> None:
        """name: of the archive, for people. port: 0 takes a free one."""
        if not 0 <= port < 65536:
            raise UsageError(f"--port is from 0 to 65535, not {port}")
        self.gallery, self.name = gallery, name
        try:
            super().__init__((LOOPBACK, port), _Requests)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not yours to use"
            raise UsageError(f"port {port} {why}; name another with --port, or 0 for any that is free") from None

    def server_bind(self) -> None:
        # without asking a name server what this machine is called
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a connection ended early", exc_info=True)


class _Requests(BaseHTTPRequestHandler):
    server: GalleryServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "zippy-batch", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].strip()):
            self._reply(403, _TEXT, "this gallery answers to localhost alone")
        elif not self._is_own():
            self._reply(403, _TEXT, "this gallery answers to its own page alone")
        else:
            self._answer()

    do_HEAD = do_GET

    def _is_own(self) -> bool:
        """Whether a request comes from the gallery's page, from an address that was typed, or from no browser."""
        if self.headers.get("Sec-Fetch-Mode") == "navigate":
            return True
        return self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")

    def _answer(self) -> None:
        try:
            parts = urlsplit(self.path)
            status, kind, body = self._content(parts.path, parts.query)
        except UsageError as error:
            status, kind, body = 400, _JSON, json.dumps({"error": str(error)})
        except (ZippyError, OSError) as error:
            status, kind, body = 500, _JSON, json.dumps({"error": str(error)})
        except ValueError:
            status, kind, body = 400, _TEXT, "this request is not understood"
        except Exception as error:
            _log.exception("%s", self.path)
            status, kind, body = 500, _JSON, json.dumps({"error": f"unexpected: {type(error).__name__}: {error}"})
        self._reply(status, kind, body)

    def _content(self, path: str, query: str) -> tuple[int, str, str | bytes]:
        """Status, media type and body of what there is at a path."""
        gallery = self.server.gallery
        if path == "/":
            return 200, _HTML, _front(self.server.name, gallery)
        if path in _ASSETS:
            return 200, _ASSETS[path], asset(path[1:])
        if path == "/rows":
            given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
            search = Search(given.get("where", "").strip(), given.get("order", "archive"))
            found = gallery.rows(search, int(given.get("start", 0)), int(given.get("count", _PAGE_ROWS)))
            return 200, _JSON, json.dumps(found)
        picture = _PICTURE.fullmatch(path)
        if picture and int(picture[2]) < len(gallery):
            look: Callable[[int], WebImage | str] = gallery.thumb if picture[1] == "thumb" else gallery.picture
            return 200, *_shown(look(int(picture[2])))
        return 404, _TEXT, "there is nothing here"

    def _reply(self, status: int, kind: str, body: str | bytes) -> None:
        data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that are malformed, or that ask for more than to look."""
        self.close_connection = True
        known = code != 501
        self._reply(code if known else 405, _TEXT, (message or "error") if known else "this gallery is read-only")

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _front(name: str, gallery: Gallery) -> str:
    options = "".join(f'<option value="{key}">{html.escape(text)}</option>' for key, text in ORDERS.items())
    page = asset("gallery.html").replace("@NAME@", text_of(name)).replace("@ORDERS@", options)
    damage = gallery.archive.damage
    said = f'<section class="damage" aria-label="Damage">{damage_list(damage)}</section>' if damage else ""
    return page.replace("@FILES@", f"{len(gallery):,}").replace("@DAMAGE@", said)


def _shown(picture: WebImage | str) -> tuple[str, bytes]:
    """Media type and bytes; what there is no picture of is said in one."""
    if isinstance(picture, WebImage):
        return picture.media_type, picture.data
    said = text_of(picture if len(picture) <= 40 else f"{picture[:39]}…")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 240 240" width="240" height="240">'
        f'<rect width="240" height="240" fill="#8a93a0"/><text x="120" y="124" text-anchor="middle" fill="#fff" '
        f'font-family="sans-serif" font-size="12">{said}</text></svg>'
    )
    return "image/svg+xml", svg.encode()


def serve_gallery(archive: str | Place, port: int, device: str, say: Callable[[str, str | None], None]) -> None:
    """Serve an archive until an interrupt. `say` is given a line with the URL once that can be opened, and what is
    damaged.

    Raises what `open` raises, and UsageError where the port cannot be had.
    """
    with open_archive(archive, device, keep_going=True) as opened:
        gallery, name = Gallery(opened), shown_place(place(archive))
        with GalleryServer(gallery, name, port) as server:
            line = f"{server.url} shows the {count_text(len(gallery), 'file')} of {name}; Ctrl-C ends it"
            say(line, damage_text(name, "gallery", opened.damage) if opened.damage else None)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
