"""Where things are: a path of this machine, or an object in a store that a URI names.

    place("faces")                       -> Path, and so does place("file:///srv/faces")
    place("s3://bucket/faces?region=x")  -> ObjectPath

Of S3 and Google Cloud Storage pyarrow knows what to do; of other schemes fsspec, where it is installed for them. What a
URI holds beside bucket and key (endpoint, region, credentials) is in no text that this module gives out.

An object is written in three steps (`put`): a local file, whole and closed; an upload under a name that no other
attempt has, checked against the file; a copy within the store to the name it is for. A stream that breaks may leave a
truncated object (https://github.com/apache/arrow/issues/40502), but under a name that nobody reads.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import parse_qsl, unquote

from zippy_batch.errors import StorageError, UsageError, ZippyError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pa_fs

CONNECT_TIMEOUT_S = 10.0
STALLED_S = 60.0
"""A request to S3 without a byte for so long counts as failed; the library allows 3 s, too few for a busy machine."""
REQUEST_ATTEMPTS = 5
"""How often a request to S3 is tried, with growing pauses, before it counts as failed."""
GOOGLE_PATIENCE_S = 120
REQUESTS = 16
"""How many are under way at a time, where many small objects are read or copied."""
READ_AHEAD_BYTES = 1 << 16
TAIL_BYTES = 1 << 16
"""What a Parquet library reads of the end of a file at least."""
COPY_LIMIT_BYTES = 5 * 1000**3
"""Size of an object that S3 copies in one request: 5 GiB, less some room."""
_MEBIBYTE = 1 << 20
_BLOCK_BYTES = 8 << 20
_S3_QUERY = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "checksums")
READ_ATTEMPTS = 3
"""How often an object is read whose bytes are not those of its checksum, before that is an error."""
_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?"?')
"""S3's form of an ETag: the MD5 of an object; with a number of parts, the MD5 of the MD5s of the parts."""
_MOST_PART_SIZES = 16
"""That are tried for an object of several parts, whose ETag does not say how large they are."""

_HTTP = ("http", "https")
_NOT_THERE = (404, 410)
"""Statuses of HTTP."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(r"(s3|gs|gcs|file):/[^/]")

Item = TypeVar("Item")
Result = TypeVar("Result")


# ---- places ----


@dataclass(frozen=True, repr=False)
class Store:
    """What it takes to connect. Pickles, and is connected to anew in each process."""

    scheme: str
    authority: str
    """What stands before the first slash: a bucket, maybe with credentials before an @."""
    query: str = ""


@dataclass(frozen=True, repr=False)
class ObjectPath:
    """The path of an object or, since stores have no directories, of all objects whose names begin with it and a slash.

    Has the methods of pathlib.Path that archives are read with.
    """

    store: Store
    key: str
    """Its name as pyarrow's file system of the store has it: with the bucket."""

    def __str__(self) -> str:
        # of HTTP a key is the whole URL
        return self.key if _URI.fullmatch(self.key) else f"{self.store.scheme}://{self.key.lstrip('/')}"

    __repr__ = __str__

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.store, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.store, self.key.rpartition("/")[0])

    def absolute(self) -> ObjectPath:
        return self

    def exists(self) -> bool:
        return self.info().type.name != "NotFound"

    def is_file(self) -> bool:
        return self.info().is_file

    def is_dir(self) -> bool:
        return self.info().type.name == "Directory"

    def info(self) -> pa_fs.FileInfo:
        with asking(self):
            return self.filesystem().get_file_info(self.key)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Raises FileNotFoundError."""
        assert mode == "rb"
        return cast(BinaryIO, ObjectFile(self))

    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError."""
        with asking(self), self.filesystem().open_input_stream(self.key) as stream:
            return stream.read()

    def filesystem(self) -> pa_fs.FileSystem:
        return _filesystem(self.store)


Place = Path | ObjectPath


def is_uri(text: str) -> bool:
    return _URI.fullmatch(text) is not None


def place(text: str | Place) -> Place:
    """The place that a path or a URI names. Raises UsageError, also for a scheme that nothing here knows."""
    if isinstance(text, ObjectPath):
        return text
    if isinstance(text, Path):
        if _COLLAPSED.match(str(text)):
            raise UsageError(f"{text} has lost a slash: give a URI as text, not as a Path")
        return text
    if not text:
        raise UsageError("a path is empty; name a file or a directory, . for this one")
    if text == "-":
        raise UsageError(
            "- is no path: nothing is read from standard input, and only reports go to standard output; name a file or "
            "a directory (./- for one of that name)"
        )
    uri = _URI.fullmatch(text)
    if uri is None:
        return Path(text)
    scheme, rest = uri[1].lower(), uri[2]
    rest, _, query = rest.partition("?")
    authority, _, key = rest.partition("/")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise UsageError(f"{text}: a file:// URI is of this machine and has three slashes, as in file:///srv/faces")
        return Path("/" + unquote(key))
    if scheme not in _OPENERS:
        return _fsspec_place(Store(scheme, authority, query), key)
    bucket = authority.rpartition("@")[2]
    path = ObjectPath(Store(scheme, authority, query), "/".join([bucket, unquote(key).rstrip("/")]).rstrip("/"))
    if not bucket or any(part in ("", ".", "..") for part in path.key.split("/")):
        raise UsageError(f"{path} names no object: expected {scheme}://BUCKET/NAME, with no empty part and no dots")
    return path


def local_path(text: str | Path, what: str) -> Path:
    """The path that a text names, for `what` reads or writes on this machine alone. Raises UsageError for a URI."""
    found = place(text)
    if not isinstance(found, Path):
        raise UsageError(f"{found}: {what} works with files of this machine; bring some of them here first")
    return found


def _fsspec_place(store: Store, key: str) -> ObjectPath:
    import fsspec

    shown = f"{store.scheme}://{store.authority.rpartition('@')[2]}/{key}"
    try:
        _, path = fsspec.core.url_to_fs(_uri(store, key))
    except ImportError as error:
        hint = "; pip install 'zippy-batch[fsspec]' brings it" if store.scheme in _HTTP else ""
        raise UsageError(f"{shown}: {error}{hint}") from error
    except ValueError as error:
        raise UsageError(
            f"{shown}: unknown scheme {store.scheme}://; there are s3://, gs://, file:// and those that fsspec knows"
        ) from error
    except OSError as error:
        # some connect to know what a path is
        raise StorageError(f"{shown}: the store cannot be reached ({_detail(str(error))})") from error
    return ObjectPath(Store(store.scheme, store.authority, store.query), path.rstrip("/"))


def _uri(store: Store, key: str) -> str:
    return f"{store.scheme}://{store.authority}/{key}" + (f"?{store.query}" if store.query else "")


# ---- connections ----


@functools.lru_cache(maxsize=16)
def _filesystem(store: Store) -> pa_fs.FileSystem:
    path = ObjectPath(store, store.authority.rpartition("@")[2])
    with asking(path):
        return _OPENERS.get(store.scheme, _open_http if store.scheme in _HTTP else _open_fsspec)(store)


def _open_s3(store: Store) -> pa_fs.FileSystem:
    """Does what FileSystem.from_uri does, which takes no timeouts and no limit of attempts."""
    import pyarrow.fs as pa_fs

    query = dict(parse_qsl(store.query, keep_blank_values=True))
    if unknown := sorted(set(query) - set(_S3_QUERY)):
        raise UsageError(f"unknown in the query of an s3:// URI: {', '.join(unknown)}; it takes {', '.join(_S3_QUERY)}")
    credentials, _, bucket = store.authority.rpartition("@")
    user, _, password = credentials.partition(":")
    if query.pop("checksums", "off") != "off":
        raise UsageError("checksums in the query of an s3:// URI is off, or not there")
    endpoint = query.pop("endpoint_override", None) or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None and "region" not in query:
        query["region"] = pa_fs.resolve_s3_region(bucket)
    return pa_fs.S3FileSystem(
        access_key=unquote(user) or None,
        secret_key=unquote(password) or None,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=STALLED_S,
        retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=REQUEST_ATTEMPTS),
        # small objects in one request instead of three
        allow_delayed_open=True,
        **query,
    )


def _open_google(store: Store) -> pa_fs.FileSystem:
    import pyarrow.fs as pa_fs

    patience = "" if "retry_limit_seconds=" in store.query else f"retry_limit_seconds={GOOGLE_PATIENCE_S}"
    query = "&".join(filter(None, (store.query, patience)))
    return pa_fs.FileSystem.from_uri(_uri(Store(store.scheme, store.authority, query), ""))[0]


def _open_fsspec(store: Store) -> pa_fs.FileSystem:
    import fsspec
    import pyarrow.fs as pa_fs

    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fsspec.core.url_to_fs(_uri(store, ""))[0]))


def _open_http(store: Store) -> pa_fs.FileSystem:
    """Reads the bytes that are asked for and no others: `ObjectFile` holds what it has read by itself."""
    import fsspec
    import pyarrow.fs as pa_fs

    remote = fsspec.filesystem(store.scheme, cache_type="none", skip_instance_cache=True)
    # it would ask for all of a file to see whether that is there, which opening it says as well
    remote.isfile = lambda path: True
    look = remote.info

    def info(path: str, **options: Any) -> dict[str, Any]:
        """What fsspec says, which takes a server that cannot be reached, or refuses, for one without the file."""
        try:
            return cast(dict[str, Any], look(path, **options))
        except FileNotFoundError as error:
            cause = error.__cause__
            status = getattr(cause, "status", None)
            if cause is None or status in _NOT_THERE:
                raise
            raise OSError(f"HTTP status {status}" if status else str(cause)) from cause

    remote.info = info
    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(remote))


_OPENERS: dict[str, Callable[[Store], pa_fs.FileSystem]] = {"s3": _open_s3, "gs": _open_google, "gcs": _open_google}


@contextmanager
def asking(path: ObjectPath) -> Iterator[None]:
    """What a store answers becomes one line that names the object. FileNotFoundError is passed on.

    Raises UsageError where the bucket does not exist, and StorageError.
    """
    import pyarrow as pa

    try:
        yield
    except (FileNotFoundError, ZippyError):
        raise
    except (OSError, pa.ArrowException) as error:
        raise _refusal(path, error) from error


_BUCKET = ("NO_SUCH_BUCKET", "bucket does not exist", "INVALID_BUCKET_NAME")
_ACCESS = (
    "ACCESS_DENIED",
    "HTTP status 403",
    "HTTP status 401",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "Permission denied",
)
_NETWORK = ("NETWORK_CONNECTION", "curlCode", "CURL error", "UNAVAILABLE", "REQUEST_TIMEOUT")


def _refusal(path: ObjectPath, error: Exception) -> UsageError | StorageError:
    text = str(error)
    if any(sign in text for sign in _BUCKET):
        return UsageError(f"{path}: there is no such bucket; make it, or correct the name")
    if any(sign in text for sign in _ACCESS):
        return StorageError(
            f"{path}: the store refuses access ({_detail(text)}); check the credentials, such as AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, and what they may do there"
        )
    if any(sign in text for sign in _NETWORK):
        return StorageError(
            f"{path}: the store cannot be reached, or broke off ({_detail(text)}); check the endpoint and the network, "
            f"and run the same command again"
        )
    return StorageError(f"{path}: the store reports {_detail(text)}; run the same command again")


def _detail(text: str) -> str:
    """What a store's library says, without what it was asked for and without the number of the request."""
    text = " ".join(text.split())
    text = re.sub(r" ?\(Request ID:.*?\)", "", text[text.find("AWS Error") :] if "AWS Error" in text else text)
    return text if len(text) <= 200 else f"{text[:197]}..."


# ---- reading ----


def read_checked(path: ObjectPath) -> tuple[bytes, Mapping[str, bytes]]:
    """An object, and what its store says of it. The bytes are compared with the ETag where that is a checksum, as it is
    in S3 unless objects are encrypted with a key of their owner (`checksums=off` in the URI says so).

    Raises FileNotFoundError, and StorageError where other bytes come again and again.
    """
    unproved: set[bytes] = set()
    tag = ""
    for _ in range(READ_ATTEMPTS):
        with asking(path), path.filesystem().open_input_stream(path.key) as stream:
            said = stream.metadata() or {}
            data = stream.read()
        tag = said.get("ETag", b"").decode("latin-1")
        etag = _ETAG.fullmatch(tag) if _has_checksums(path) else None
        if etag is None or _is_of(data, etag[1], int(etag[2] or 0)):
            return data, said
        # of parts of unknown size, two reads that agree must do
        digest = hashlib.sha256(data).digest()
        if etag[2] and digest in unproved:
            return data, said
        unproved.add(digest)
    raise StorageError(
        f"{path}: the bytes that came are not those of its checksum, {READ_ATTEMPTS} times (ETag {tag}); check the "
        f"network, and run the same command again. Where objects are encrypted with a key (SSE-KMS, SSE-C), an ETag is "
        f"no checksum: add ?checksums=off to the URI"
    )


def _has_checksums(path: ObjectPath) -> bool:
    bucket = path.store.authority.rpartition("@")[2]
    # a directory bucket of S3 Express, whose ETags are of no meaning, has such a name
    is_s3 = path.store.scheme == "s3" and not bucket.endswith("--x-s3")
    return is_s3 and "checksums" not in dict(parse_qsl(path.store.query, keep_blank_values=True))


def _is_of(data: bytes, digest: str, parts: int) -> bool:
    """Whether an object of these bytes can have this ETag, of so many parts; 0 for one that was written whole."""
    if parts == 0:
        return _md5(data).hexdigest() == digest
    smallest = -(-len(data) // parts)
    largest = len(data) if parts == 1 else -(-len(data) // (parts - 1)) - 1
    steps = range(-(-smallest // _MEBIBYTE) * _MEBIBYTE, largest + 1, _MEBIBYTE)
    for size in [largest] if parts == 1 else steps[:_MOST_PART_SIZES]:
        cut = [data[start : start + size] for start in range(0, len(data), max(size, 1))] or [b""]
        if _md5(b"".join(_md5(part).digest() for part in cut)).hexdigest() == digest:
            return True
    return False


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


class ObjectFile(io.RawIOBase):
    """Random access to an object. What was read is held for the reads beside it: each request takes as long as some
    hundred kilobytes do."""

    def __init__(self, path: ObjectPath, size_bytes: int | None = None, tail: bytes = b"") -> None:
        """Where `size_bytes` and the last bytes are known, nothing is asked of the store before another byte is needed.
        Raises FileNotFoundError, then or later."""
        self._path, self._tail, self._at = path, tail, 0
        self._object: pa.NativeFile | None = None
        self._size = self._source().size() if size_bytes is None else size_bytes
        self._fetched: list[tuple[int, bytes]] = []
        self._last = (0, b"")

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Hold these ranges of bytes, in place of those that this held before, with one request for neighbours."""
        self._fetched = []
        joined: list[list[int]] = []
        for start, stop in sorted(ranges):
            # a page header is looked for in some bytes more than it has
            stop = min(stop + READ_AHEAD_BYTES // 64, self._size)
            if joined and start - joined[-1][1] <= READ_AHEAD_BYTES:
                joined[-1][1] = max(stop, joined[-1][1])
            else:
                joined.append([start, stop])
        self._fetched = [(start, self._get(start, stop)) for start, stop in joined if self._held(start, stop) is None]

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        stop = min(self._size, self._at + len(wanted))
        count = max(0, stop - self._at)
        if count:
            wanted[:count] = self._bytes(self._at, stop)
            self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._object is not None:
            self._object.close()
        super().close()

    def _bytes(self, start: int, stop: int) -> memoryview:
        held = self._held(start, stop)
        if held is None:
            last = min(self._size, max(stop, start + READ_AHEAD_BYTES))
            first = start if last < self._size else min(start, max(0, self._size - TAIL_BYTES))
            self._last = (first, self._get(first, last))
            held = self._held(start, stop)
            assert held is not None
        return held

    def _held(self, start: int, stop: int) -> memoryview | None:
        for at, data in ((self._size - len(self._tail), self._tail), self._last, *self._fetched):
            if at <= start and stop <= at + len(data):
                return memoryview(data)[start - at : stop - at]
        return None

    def _get(self, start: int, stop: int) -> bytes:
        """Raises OSError where the object has become shorter."""
        source = self._source()
        try:
            with asking(self._path):
                data = source.read_at(stop - start, start)
        except ValueError as error:
            # what fsspec says of a server that sends all of a file instead
            raise StorageError(
                f"{self._path}: the server does not answer requests for a range of bytes; download the file, and read "
                f"it from there"
            ) from error
        if len(data) != stop - start:
            raise OSError(f"{self._path} has changed: {len(data)} bytes instead of {stop - start} at {start}")
        return data

    def _source(self) -> pa.NativeFile:
        if self._object is None:
            with asking(self._path):
                self._object = self._path.filesystem().open_input_file(self._path.key)
        return self._object


@contextmanager
def reading(path: Place, size_bytes: int, tail: bytes) -> Iterator[BinaryIO]:
    """A file of known size whose last bytes may be known as well."""
    if isinstance(path, Path):
        with path.open("rb") as file:
            yield file
    else:
        with ObjectFile(path, size_bytes, tail) as remote:
            yield cast(BinaryIO, remote)


def exists(path: Place) -> bool:
    """Whether something is there; a link that leads nowhere counts."""
    return os.path.lexists(path) if isinstance(path, Path) else path.exists()


def size_of(path: Place) -> int | None:
    """Size in bytes; None where there is no such file."""
    if isinstance(path, Path):
        try:
            status = path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    found = path.info()
    return found.size if found.is_file else None


def sizes_in(directory: Place) -> dict[str, int]:
    """Size in bytes of each file in a directory, by name, without those in its subdirectories."""
    if isinstance(directory, Path):
        # what goes away meanwhile, and links that go round in circles, are no files: os.DirEntry raises for those
        found = {name: size_of(directory / name) for name in os.listdir(directory)}
        return {name: size for name, size in found.items() if size is not None}
    return {found.base_name: found.size for found in listed(directory) if found.is_file}


def require_bucket(path: ObjectPath) -> None:
    """Raises UsageError where the bucket does not exist; of other stores than S3 and Google's nothing is asked."""
    bucket = ObjectPath(path.store, path.store.authority.rpartition("@")[2])
    if path.store.scheme in _OPENERS and not bucket.exists():
        raise UsageError(f"{path}: there is no such bucket; make it, or correct the name")


def listed(directory: ObjectPath, recursive: bool = False) -> list[pa_fs.FileInfo]:
    """What is in a directory; nothing where there is none."""
    import pyarrow.fs as pa_fs

    with asking(directory):
        selector = pa_fs.FileSelector(directory.key, recursive=recursive, allow_not_found=True)
        return directory.filesystem().get_file_info(selector)


def download(path: ObjectPath, target: Path) -> Path:
    """Compared with the ETag where that is an MD5; two reads that agree are taken all the same, because of objects that
    are encrypted with a key it is none. Raises FileNotFoundError, and StorageError where it comes incomplete, or
    differently each time."""
    unproved: set[str] = set()
    for _ in range(READ_ATTEMPTS):
        with asking(path), path.filesystem().open_input_file(path.key) as source, target.open("wb") as file:
            size_bytes, got, digest = source.size(), 0, _md5(b"")
            etag = _ETAG.fullmatch(_tag(source)) if _has_checksums(path) else None
            while block := source.read(_BLOCK_BYTES):
                file.write(block)
                digest.update(block)
                got += len(block)
        if got != size_bytes:
            raise StorageError(f"{path}: {got} of {size_bytes} bytes came; run the same command again")
        found = digest.hexdigest()
        if etag is None or etag[2] or found == etag[1] or found in unproved:
            return target
        unproved.add(found)
    raise StorageError(f"{path}: other bytes came each time; check the network, and run the same command again")


# ---- writing ----


def put(local: Path, attempts: ObjectPath, path: ObjectPath) -> None:
    """Make a file that is whole and closed the object `path`, by way of one that is in the directory `attempts`.

    Raises StorageError; then `path` is as it was.
    """
    attempt = attempts / f"{path.name}.{uuid.uuid4().hex}"
    _upload(local, attempt)
    _compare(local, attempt)
    copy(attempt, path)


def put_bytes(data: bytes, path: ObjectPath) -> None:
    """Write a small object in one request."""
    with asking(path), path.filesystem().open_output_stream(path.key) as stream:
        stream.write(data)


def copy(source: ObjectPath, path: ObjectPath) -> None:
    """Copy within the store; `path` is replaced whole. Raises StorageError."""
    with asking(path):
        path.filesystem().copy_file(source.key, path.key)


def delete(path: ObjectPath) -> None:
    """Nothing happens where there is no such object."""
    try:
        with asking(path):
            path.filesystem().delete_file(path.key)
    except FileNotFoundError:
        pass


def delete_all(directory: ObjectPath) -> None:
    """Nothing happens where there is no such directory."""
    try:
        with asking(directory):
            directory.filesystem().delete_dir(directory.key)
    except FileNotFoundError:
        pass


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """function(item) of each, in order, REQUESTS of them at a time; raises what the first of them raises."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="zippy-store") as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def _upload(local: Path, path: ObjectPath) -> None:
    with local.open("rb") as file, asking(path), path.filesystem().open_output_stream(path.key) as stream:
        while block := file.read(_BLOCK_BYTES):
            stream.write(block)


def _compare(local: Path, path: ObjectPath) -> None:
    """Raises StorageError unless the object is the file: by its MD5 where the store says it, else read back."""
    size_bytes = local.stat().st_size
    with asking(path), path.filesystem().open_input_file(path.key) as there:
        found = there.size()
        same = found == size_bytes and (_tag(there) == _digest(local, "md5") or _same_bytes(local, there))
    if not same:
        raise StorageError(
            f"{path} is not what was uploaded ({found} bytes of {size_bytes}); run the same command again"
        )


def _tag(stream: pa.NativeFile) -> str:
    """MD5 of an object that was written in one request and is not encrypted with a key; else something other."""
    return (stream.metadata() or {}).get("ETag", b"").decode().strip('"')


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _same_bytes(path: Path, stream: pa.NativeFile) -> bool:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if stream.read(len(block)) != block:
                return False
    return True
