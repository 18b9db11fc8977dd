"""The JSON object that a Parquet file of an archive has in its metadata, and a directory as its manifest."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zippy_batch.archives.mending import mended
from zippy_batch.archives.schema import CODED, FORMAT_VERSION, MAX_GROUPS, MAX_ROWS_PER_GROUP, MAX_STORED_BYTES
from zippy_batch.errors import ArchiveError
from zippy_batch.stores.object_path import Place

MAX_MODEL_FILE_BYTES = 1 << 26
_MAX_SHARD_ROWS = MAX_GROUPS * MAX_ROWS_PER_GROUP
_MAX_SHARD_BYTES = 2 * MAX_GROUPS * MAX_STORED_BYTES


@dataclass(frozen=True)
class PartEntry:
    name: str
    size_bytes: int
    sha256: str
    least: bytes | None = None
    most: bytes | None = None
    """Bounds of its paths, as the column `path` has them; None where they are long."""


@dataclass(frozen=True)
class StoredModel:
    """Tells where a model is stored that is not built in."""

    size_bytes: int
    crc: int
    """CRC-32 of it, from which one damaged byte is put right; its SHA-256 says whether that is so."""
    offset: int = 0
    """Position in a single file."""


@dataclass(frozen=True)
class Moving:
    """Says that parts of a directory in an object store, which renames nothing, are on their way to their place."""

    folder: str
    """In the staging of the archive: where the parts are until they are in their place; 32 hexadecimal digits."""
    shards: frozenset[int]


@dataclass(frozen=True)
class Head:
    """The description of an archive or of a part, checked."""

    models: dict[str, str]
    """SHA-256 of the model that each codec's payloads need."""
    options: dict[str, Any]
    shards: tuple[int, ...]
    payload_bytes: tuple[int, ...]
    exact_bytes: tuple[int, ...]
    """Those of payload_bytes that are of exact rows."""
    stored_models: dict[str, StoredModel]
    """Codec -> its model."""
    parts: tuple[PartEntry, ...]
    moving: Moving | None = None


def seal(head: Mapping[str, Any]) -> str:
    """JSON with a CRC-32 of itself as its last member."""
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text[:-1] + _seal_of(text.encode())


def _seal_of(text: bytes) -> str:
    return f',"crc":{zlib.crc32(text)}}}'


_SEALED = re.compile(rb'(.*),"crc":(\d{1,10})\}', re.DOTALL)
_VERSION = re.compile(rb'"format":(\d{1,9})[,}]')


def check_version(text: bytes, path: Place) -> None:
    """Raises ArchiveError when a description somewhere in `text` is of another format."""
    version = _VERSION.search(text)
    if version is None or int(version[1]) == FORMAT_VERSION:
        return
    if int(version[1]) > FORMAT_VERSION:
        raise ArchiveError(
            f"{path} is an archive of format {int(version[1])}, and this version of zippy-batch reads format "
            f"{FORMAT_VERSION}; install a newer one"
        )
    raise ArchiveError(
        f"{path} is an archive of format {int(version[1])}, which was never released and is no longer read; archive "
        f"the files anew"
    )


def parse_head(text: bytes, path: Place) -> tuple[Head, bool]:
    """Inverse of `seal`, and whether a damaged byte was put right for it.

    Raises ArchiveError; ValueError, KeyError or TypeError for malformed content whose checksum matches.
    """
    whole = _unsealed(text)
    if whole is None:
        whole = next(filter(_is_description, _mended(text)), None)
        if whole is None:
            check_version(text, path)
            raise ArchiveError(f"{path}: the description of the archive is damaged (checksum)")
        return _parse_head(whole, path), True
    return _parse_head(whole, path), False


def _unsealed(text: bytes) -> bytes | None:
    """The JSON without its checksum, where that is right."""
    sealed = _SEALED.fullmatch(text)
    if sealed is None or zlib.crc32(sealed[1] + b"}") != int(sealed[2]):
        return None
    return sealed[1] + b"}"


def _mended(text: bytes) -> list[bytes]:
    """What the JSON may have been before one byte was damaged."""
    sealed = _SEALED.fullmatch(text)
    found = mended(sealed[1] + b"}", int(sealed[2])) if sealed else []
    for digits in range(1, 12):
        cut = len(text) - len(',"crc":}') - digits
        # the checksum itself may be what is damaged
        if cut > 0 and _differ_in_one(text[cut:], _seal_of(text[:cut] + b"}").encode()):
            found.append(text[:cut] + b"}")
    return found


def _differ_in_one(a: bytes, b: bytes) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 1


def _is_description(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _parse_head(text: bytes, path: Place) -> Head:
    check_version(text, path)
    head = json.loads(text)
    if head["format"] != FORMAT_VERSION:
        raise ValueError(f"format {head['format']!r}")
    shards = _counts(head["shards"], _MAX_SHARD_ROWS)
    payload_bytes, exact_bytes = (_counts(head[name], _MAX_SHARD_BYTES) for name in ("payload_bytes", "exact_bytes"))
    if not len(shards) == len(payload_bytes) == len(exact_bytes):
        raise ValueError("shards, payload_bytes and exact_bytes differ in length")
    models = dict(head["models"])
    if not set(models) <= set(CODED) or any(not re.fullmatch("[0-9a-f]{64}", found) for found in models.values()):
        raise ValueError("models are not SHA-256 by codec")
    stored = {codec: _stored_model(found) for codec, found in head.get("stored_models", {}).items()}
    if not set(stored) <= set(models):
        raise ValueError("a model of no codec")
    parts = [_part(part) for part in head.get("parts", ())]
    return Head(
        models=models,
        options=dict(head["options"]),
        shards=shards,
        payload_bytes=payload_bytes,
        exact_bytes=exact_bytes,
        stored_models=stored,
        parts=tuple(parts),
        moving=_moving(head["moving"], len(parts)) if "moving" in head else None,
    )


def _moving(found: Mapping[str, Any], parts: int) -> Moving:
    folder, shards = found["folder"], _counts(found["shards"], parts - 1)
    if not isinstance(folder, str) or not re.fullmatch("[0-9a-f]{32}", folder):
        raise ValueError("parts move from a folder that no staging has")
    return Moving(folder, frozenset(shards))


def _part(found: Mapping[str, Any]) -> PartEntry:
    [size_bytes] = _counts([found["bytes"]], _MAX_SHARD_BYTES)
    least, most = (path.encode() for path in found["paths"]) if "paths" in found else (None, None)
    return PartEntry(found["name"], size_bytes, str(found["sha256"]), least, most)


def _stored_model(found: Mapping[str, Any]) -> StoredModel:
    size_bytes, crc, offset = _counts([found["bytes"], found["crc"], found.get("offset", 0)], _MAX_SHARD_BYTES)
    if size_bytes > MAX_MODEL_FILE_BYTES:
        raise ValueError(f"a model of {size_bytes} bytes")
    return StoredModel(size_bytes, crc, offset)


def _counts(values: Sequence[Any], most: int) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or not 0 <= value <= most for value in values):
        raise ValueError("not a list of counts, or one beyond all bounds")
    return tuple(values)
