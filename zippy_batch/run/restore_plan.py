"""Where restored files go: every target is known and checked before the first is written.

An interrupted restore leaves a directory `.zippy-restoring` in its destination that says which restore it was; the
same one, run again, takes the files it finds for its own and writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zippy_batch.archives.reader import Archive
from zippy_batch.archives.schema import Row
from zippy_batch.archives.where import parse_condition
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.images.pixels import restored_path
from zippy_batch.paths import MAX_NAME_BYTES, display_path, is_below, safe_relative_path
from zippy_batch.run.restore_shard import RestoreUnit

MARKER_NAME = b".zippy-restoring"
_PLAN_FILE = "restore.json"
_SHOWN = 5
"""Paths that a message names before it only counts."""


@dataclass
class RestorePlan:
    """What a restore will do, in the order of the archive."""

    units: list[RestoreUnit] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    """Relative to the destination; rows that cannot be read have none."""
    rows: int = 0
    source_bytes: int = 0
    codecs: set[str] = field(default_factory=set)
    """Of the rows wanted."""


def plan_restore(archive: Archive, options: RestoreOptions) -> RestorePlan:
    """The rows wanted, and where they go.

    Raises ArchiveError for a path that would leave the destination or that two rows share, UsageError where the
    pattern matches nothing.
    """
    wanted = _wanted(archive, options)
    plan = RestorePlan()
    for shard in archive.shards():
        rows = None if wanted is None else wanted.get(shard, [])
        if rows != []:
            _add_shard(plan, archive, shard, rows, options)
    if wanted is not None and not plan.rows:
        asked = [repr(text) for text in (options.select, options.where) if text is not None]
        raise UsageError(f"no row of {archive.path} matches {' and '.join(asked)}")
    _check_paths(plan.paths)
    return plan


def _wanted(archive: Archive, options: RestoreOptions) -> dict[int, list[int]] | None:
    """Rows by shard; None for all."""
    found = []
    if options.select is not None:
        found.append(archive.select(options.select))
    if options.where is not None:
        found.append(archive.where(parse_condition(options.where)))
    if len(found) < 2:
        return found[0] if found else None
    return {shard: sorted({*rows} & {*found[1][shard]}) for shard, rows in found[0].items() if shard in found[1]}


def _add_shard(
    plan: RestorePlan, archive: Archive, shard: int, rows: Sequence[int] | None, options: RestoreOptions
) -> None:
    facts = _facts(archive, shard)
    places = range(archive.info.shards[shard]) if rows is None else rows
    for place in places:
        if place in facts:
            path, codec, source_format, source_bytes = facts[place]
            is_new = codec == "latent"
            plan.paths.append(restored_path(path, source_format or "", options.format) if is_new else path)
            plan.source_bytes += source_bytes
            plan.codecs.add(codec)
    plan.rows += len(places)
    plan.units.append(RestoreUnit(shard, None if rows is None else tuple(rows)))


def _facts(archive: Archive, shard: int) -> dict[int, tuple[bytes, str, str | None, int]]:
    """Path, codec, source format and source bytes of each row that can be read, by its place."""
    paths = archive.paths(shard)
    try:
        columns = archive.read_columns(shard, ("codec", "source_format", "source_bytes"))
    except ArchiveError:
        rows = enumerate(archive.read_rows(shard))
        return {i: (r.path, r.codec, r.source_format, r.source_bytes) for i, r in rows if isinstance(r, Row)}
    known = zip(paths, *columns.values(), strict=True)
    return {i: (path, *rest) for i, (path, *rest) in enumerate(known) if path is not None}


def _check_paths(paths: Sequence[bytes]) -> None:
    """Raises ArchiveError."""
    seen: set[bytes] = set()
    for path in paths:
        safe_relative_path(path)
        longest = max(map(len, path.split(b"/")))
        if longest > MAX_NAME_BYTES:
            raise ArchiveError(
                f"{display_path(path)}: a name of {longest} bytes, and a directory takes up to {MAX_NAME_BYTES}; "
                f"choose another --format, which may add no suffix, or leave it out with --select or --where"
            )
        if path in seen:
            raise ArchiveError(
                f"two rows would be restored as {display_path(path)}; restore them apart, with --select, or choose "
                f"another --format"
            )
        seen.add(path)
    for path in paths:
        for parent in _parents(path):
            if parent in seen:
                raise ArchiveError(
                    f"{display_path(parent)} would be restored as a file, and as a directory for {display_path(path)}; "
                    f"restore them apart, with --select, or choose another --format"
                )


def _parents(path: bytes) -> Iterator[bytes]:
    cut = path.rfind(b"/")
    while cut > 0:
        yield path[:cut]
        cut = path.rfind(b"/", 0, cut)


@contextmanager
def restoring(
    archive: Archive, destination: Path, plan: RestorePlan, options: RestoreOptions, overwrite: bool
) -> Iterator[Path]:
    """A directory in `destination` for files that are being written; kept if the body raises, for the next attempt.

    Raises OutputExists when files are in the way, unless `overwrite`, or an earlier attempt at the same put them there,
    and UsageError for what not even `overwrite` replaces: a directory where a file goes, and the reverse, and links.
    """
    if os.path.lexists(destination) and not destination.is_dir():
        raise UsageError(f"cannot restore into {destination}: it is not a directory")
    _refuse_obstacles(destination, plan.paths)
    work = destination / os.fsdecode(_unused_name(plan.paths))
    identity = json.dumps([_identity(archive), options.format, options.jpeg_quality, options.select, options.where])
    if not overwrite and not _goes_on(work, identity):
        _refuse_existing(destination, plan.paths)
    try:
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        (work / _PLAN_FILE).write_text(identity)
    except OSError as error:
        raise UsageError(f"cannot restore into {destination}: {error.strerror}") from error
    yield work
    shutil.rmtree(work)


def _unused_name(paths: Sequence[bytes]) -> bytes:
    taken = {path.split(b"/", 1)[0] for path in paths}
    name = MARKER_NAME
    while name in taken:
        name += b"_"
    return name


def _identity(archive: Archive) -> str:
    """Tells archives apart by what they are, wherever they lie."""
    digest = hashlib.sha256(json.dumps([dict(archive.info.models), archive.size_bytes]).encode())
    for shard in archive.shards():
        digest.update(f"{archive.info.shards[shard]} {archive.payload_bytes(shard)} ".encode())
    return digest.hexdigest()


def _goes_on(work: Path, identity: str) -> bool:
    try:
        return (work / _PLAN_FILE).read_text() == identity
    except OSError:
        return False


def _refuse_obstacles(destination: Path, paths: Sequence[bytes]) -> None:
    if not destination.is_dir() or not os.listdir(destination):
        return
    root = os.path.realpath(os.fsencode(destination))
    for path in paths:
        target = os.path.join(root, path)
        if os.path.isdir(target) and not os.path.islink(target):
            raise UsageError(f"{display_path(path)} is a directory in {destination}, and would be a file; move it away")
    for parent in dict.fromkeys(parent for path in paths for parent in _parents(path)):
        target = os.path.join(root, parent)
        if os.path.lexists(target) and not os.path.isdir(target):
            raise UsageError(f"{display_path(parent)} is no directory in {destination}, and would be; move it away")
        if not is_below(os.path.realpath(target), root):
            raise UsageError(f"{display_path(parent)} in {destination} is a link that leads out of it; take it away")


def _refuse_existing(destination: Path, paths: Sequence[bytes]) -> None:
    if not destination.is_dir() or not os.listdir(destination):
        return
    root = os.fsencode(destination)
    there = [path for path in paths if os.path.lexists(os.path.join(root, path))]
    if there:
        shown = ", ".join(display_path(path) for path in there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")
        raise OutputExists(
            f"{len(there)} of the files are in {destination} already ({shown}); "
            f"restore into another directory, or pass --overwrite to replace them"
        )
