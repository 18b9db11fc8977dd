"""A store that speaks S3 over HTTP on this machine, what was asked of it, and a line to it that breaks."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from zippy_batch.stores import object_path
from zippy_batch.stores.object_path import ObjectPath, Place, listed, place

BUCKET = "faces-bucket"


@dataclass
class S3:
    host: str
    """HOST:PORT"""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path."""

    def uri(self, key: str, host: str | None = None, bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{key}?scheme=http&region=us-east-1&endpoint_override={host or self.host}"

    def at(self, key: str) -> ObjectPath:
        found = place(self.uri(key))
        assert isinstance(found, ObjectPath)
        return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[test]'")
    pytest.importorskip("flask", reason="flask is not installed: pip install -e '.[test]'")
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    os.environ.update(AWS_ACCESS_KEY_ID="tester", AWS_SECRET_ACCESS_KEY="hidden", AWS_EC2_METADATA_DISABLED="true")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3 = S3(f"{host}:{port}")

    def note(self: WSGIRequestHandler, code: int | str = "-", size: int | str = "-") -> None:
        s3.requests.append((self.command, self.path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WSGIRequestHandler, "log_request", note)
        yield s3
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """With one bucket and nothing in it; a request that fails is tried once more."""
    import urllib.request

    monkeypatch.setattr(object_path, "REQUEST_ATTEMPTS", 2)
    object_path._filesystem.cache_clear()

    urllib.request.urlopen(urllib.request.Request(f"http://{s3_server.host}/moto-api/reset", method="POST"))
    import pyarrow.fs as pa_fs

    options = {"scheme": "http", "region": "us-east-1", "endpoint_override": s3_server.host}
    pa_fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir(BUCKET)
    s3_server.requests.clear()
    return s3_server


def upload(directory: Path, root: ObjectPath) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            target = root / str(path.relative_to(directory))
            with root.filesystem().open_output_stream(target.key) as stream:
                stream.write(path.read_bytes())


def content(path: Place) -> dict[str, bytes]:
    """Relative name -> bytes of a file ("" for its own) or of all below a directory."""
    if isinstance(path, Path):
        return {
            str(one.relative_to(path)) if path.is_dir() else "": one.read_bytes()
            for one in (path, *path.rglob("*"))
            if one.is_file()
        }
    if path.is_file():
        return {"": path.read_bytes()}
    found = [info for info in listed(path, recursive=True) if info.is_file]
    return {info.path[len(path.key) + 1 :]: ObjectPath(path.store, info.path).read_bytes() for info in found}


class Proxy:
    """Passes connections on to a server, and cuts all of them once so many bytes went to it."""

    def __init__(self, host: str) -> None:
        name, port = host.split(":")
        self._to = (name, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.allowed_bytes: int | None = None
        """To the server; None for any number."""
        self.sent_bytes = self.received_bytes = 0
        """To the server, as long as it was allowed any number, and from it."""
        self.flip: bytes | None = None
        """Bytes that come from the server with another bit in the last of them."""
        self.flips_left = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.allowed_bytes is not None and self.allowed_bytes <= 0:
                    client.close()
                    continue
                server = socket.create_connection(self._to)
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if counted and self.allowed_bytes is not None:
                    data = data[: max(0, self.allowed_bytes)]
                    self.allowed_bytes -= len(data)
                    if self.allowed_bytes <= 0:
                        target.sendall(data)
                        break
                if not counted:
                    self.received_bytes += len(data)
                    data = self._flipped(data)
                elif self.allowed_bytes is None:
                    self.sent_bytes += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _flipped(self, data: bytes) -> bytes:
        if self.flip is None or self.flip not in data or not self.flips_left:
            return data
        self.flips_left -= 1
        return data.replace(self.flip, self.flip[:-1] + bytes([self.flip[-1] ^ 1]))


@pytest.fixture
def proxy(s3: S3) -> Iterator[Proxy]:
    made = Proxy(s3.host)
    yield made
    made.close()
