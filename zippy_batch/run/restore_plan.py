"""Where restored files go: every target is known and checked before the first is written.

An interrupted restore leaves a folder in its destination that says which restore it was (`restore_folder`); the same
one, run again, takes the files it finds for its own and writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zippy_batch.archives.reader import Archive
from zippy_batch.archives.schema import Row
from zippy_batch.archives.where import parse_condition
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.images.pixels import restored_path
from zippy_batch.paths import MAX_NAME_BYTES, display_path, is_below, is_named_like_a_file, safe_relative_path
from zippy_batch.run.restore_folder import restore_folder
from zippy_batch.run.restore_shard import RestoreUnit
from zippy_batch.stores.atomic_file import flush_all

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
        select = " or ".join(map(repr, options.select))
        asked = [text for text in (select, options.where and repr(options.where)) if text]
        raise UsageError(f"no row of {archive.path} matches {' and '.join(asked)}")
    _check_paths(plan.paths)
    return plan


def _wanted(archive: Archive, options: RestoreOptions) -> dict[int, list[int]] | None:
    """Rows by shard; None for all."""
    found = []
    if options.select:
        found.append(_union(map(archive.select, options.select)))
    if options.where is not None:
        found.append(archive.where(parse_condition(options.where)))
    if len(found) < 2:
        return found[0] if found else None
    return {shard: sorted({*rows} & {*found[1][shard]}) for shard, rows in found[0].items() if shard in found[1]}


def _union(selections: Iterable[Mapping[int, Sequence[int]]]) -> dict[int, list[int]]:
    """Rows that any of the selections holds, by shard."""
    rows: dict[int, set[int]] = {}
    for selection in selections:
        for shard, found in selection.items():
            rows.setdefault(shard, set()).update(found)
    return {shard: sorted(rows[shard]) for shard in sorted(rows)}


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

    Raises OutputExists when files are in the way, unless `overwrite`, or an earlier attempt at the same put them
    there, and UsageError for what not even `overwrite` replaces (a directory where a file goes, and the reverse,
    and links) and while another run restores to `destination`.
    """
    if os.path.lexists(destination) and not destination.is_dir():
        raise UsageError(f"cannot restore into {destination}: it is not a directory")
    if is_named_like_a_file(destination.name) and not destination.is_dir():
        raise UsageError(
            f"cannot restore into {destination}: files are restored to a directory, and its name ends in "
            f"{destination.suffix}; choose another name, or make that directory first"
        )
    _refuse_obstacles(destination, plan.paths)
    identity = _restore_identity(archive, options)
    new_directories = _missing(destination)
    with restore_folder(destination, {os.fsdecode(path.split(b"/", 1)[0]) for path in plan.paths}) as folder:
        if not overwrite and folder.unfinished() != identity:
            _refuse_existing(destination, plan.paths)
        folder.begin(identity)
        yield folder.path
        if options.sync:
            flush_all([*_directories(destination, plan.paths), *new_directories])
        folder.finish()


def _restore_identity(archive: Archive, options: RestoreOptions) -> str:
    """What tells one restore from another, wherever the archive lies."""
    names = ("format", "jpeg_quality", "select", "where")
    return json.dumps({"archive": _archive_identity(archive), **{name: getattr(options, name) for name in names}})


def _missing(destination: Path) -> list[bytes]:
    """The directories that will get a new entry when `destination` is made."""
    missing = [path for path in (destination, *destination.parents) if not path.exists()]
    return [os.fsencode(path.parent) for path in missing]


def _directories(destination: Path, paths: Sequence[bytes]) -> list[bytes]:
    """The destination, and every directory below it that files were restored to."""
    root = os.fsencode(destination)
    below = (
        os.path.join(root, parent) for parent in dict.fromkeys(parent for path in paths for parent in _parents(path))
    )
    # a directory of damaged rows alone was not made
    return [root, *filter(os.path.isdir, below)]


def _archive_identity(archive: Archive) -> str:
    """Tells archives apart by what they are, wherever they lie."""
    digest = hashlib.sha256(json.dumps([dict(archive.info.models), archive.size_bytes]).encode())
    for shard in archive.shards():
        digest.update(f"{archive.info.shards[shard]} {archive.payload_bytes(shard)} ".encode())
    return digest.hexdigest()


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
