"""Where restored files go: every target is known and checked before the first is written.

An interrupted restore leaves a folder in its destination that says which restore it was (`restore_folder`); the same
one, run again, takes the files it finds for its own and writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from zippy_batch.archives.info import DAMAGED_NAMES, damaged_name
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.archives.where import parse_condition
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.images.pixels import restored_path
from zippy_batch.paths import MAX_NAME_BYTES, display_path, is_below, is_named_like_a_file, safe_relative_path
from zippy_batch.run.report import Finding
from zippy_batch.run.restore_folder import restore_folder
from zippy_batch.run.restore_shard import Renamed, RestoreUnit
from zippy_batch.stores.atomic_file import flush_all

_SHOWN = 5
"""Paths that a message names before it only counts."""


@dataclass
class RestorePlan:
    """What a restore will do, in the order of the archive."""

    units: list[RestoreUnit] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    """Relative to the destination; rows that cannot be read have none."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """Shard and row of each path; kept only where one may have to be changed."""
    nameless: list[tuple[int, int, str, str | None]] = field(default_factory=list)
    """Shard, row, codec and source format of rows whose path is lost."""
    rows: int = 0
    source_bytes: int = 0
    codecs: set[str] = field(default_factory=set)
    """Codecs of the rows wanted."""


def plan_restore(archive: ArchiveReader, options: RestoreOptions) -> RestorePlan:
    """The rows wanted, and where they go.

    Raises ArchiveError for a path that would leave the destination or that two rows share; with
    `options.keep_going` such rows, and those whose path is lost, get a name made of shard and row. Raises UsageError
    where the pattern matches nothing.
    """
    wanted = chosen_rows(archive, options.select, options.where)
    plan = RestorePlan()
    for shard in archive.shards():
        rows = None if wanted is None else wanted.get(shard, [])
        if archive.lost(shard):
            plan.units.append(RestoreUnit(shard))
        elif rows != []:
            _add_shard(plan, archive, shard, rows, options)
    if wanted is not None and not plan.rows:
        select = " or ".join(map(repr, options.select))
        asked = [text for text in (select, options.where and repr(options.where)) if text]
        raise UsageError(f"no row of {archive.path} matches {' and '.join(asked)}")
    if options.keep_going:
        _rename(plan, dict(bad_paths(plan.paths)), options)
    else:
        for _, problem in bad_paths(plan.paths):
            raise ArchiveError(f"{problem}; --keep-going restores it under another name")
    return plan


def chosen_rows(archive: ArchiveReader, select: Sequence[str], where: str | None) -> dict[int, list[int]] | None:
    """Rows by shard that match any of the globs and fulfil the condition; None for all, where neither is given."""
    found = []
    if select:
        found.append(_union(map(archive.select, select)))
    if where is not None:
        found.append(archive.where(parse_condition(where)))
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
    plan: RestorePlan, archive: ArchiveReader, shard: int, rows: Sequence[int] | None, options: RestoreOptions
) -> None:
    facts = _facts(archive, shard)
    places = range(archive.info.shards[shard]) if rows is None else rows
    for place in places:
        if place in facts:
            path, codec, source_format, source_bytes = facts[place]
            plan.source_bytes += source_bytes
            plan.codecs.add(codec)
            if path is None:
                plan.nameless.append((shard, place, codec, source_format))
                continue
            plan.paths.append(_target(path, codec, source_format, options))
            if options.keep_going:
                plan.places.append((shard, place))
    plan.rows += len(places)
    plan.units.append(RestoreUnit(shard, None if rows is None else tuple(rows)))


def _target(path: bytes, codec: str, source_format: str | None, options: RestoreOptions) -> bytes:
    return restored_path(path, source_format or "", options.format) if codec == "latent" else path


def _facts(archive: ArchiveReader, shard: int) -> dict[int, tuple[bytes | None, str, str | None, int]]:
    """Path, codec, source format and source bytes of each row that can be restored, by its place."""
    try:
        columns = archive.read_columns(shard, ("codec", "source_format", "source_bytes"))
        paths = archive.paths(shard)
        if None not in paths:
            return dict(enumerate(zip(paths, *columns.values(), strict=True)))
    except ArchiveError:
        pass
    found = {}
    for place, row in enumerate(archive.read_rows(shard)):
        rest = row if isinstance(row, Row) else row.rest
        if rest is not None:
            found[place] = (row.path, rest.codec, rest.source_format, rest.source_bytes)
    return found


def find_bad_paths(archive: ArchiveReader) -> list[Finding]:
    """Rows of an archive whose path a restore would refuse."""
    paths: list[bytes] = []
    places: list[tuple[int, int]] = []
    for shard in archive.shards():
        known = [(row, path) for row, path in enumerate(archive.paths(shard)) if path is not None]
        paths += [path for _, path in known]
        places += [(shard, row) for row, _ in known]
    return [
        Finding(display_path(paths[i]), f"restore refuses its path: {why}", *places[i]) for i, why in bad_paths(paths)
    ]


def bad_paths(paths: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Places of paths that not all can be written below one directory, and what is wrong with them."""
    seen: set[bytes] = set()
    for place, path in enumerate(paths):
        problem = _problem(path) or (f"two rows would be restored as {display_path(path)}" if path in seen else None)
        if problem:
            yield place, problem
        seen.add(path)
    files = set[bytes]()
    for path in paths:
        for parent in _parents(path):
            if parent in seen and parent not in files:
                files.add(parent)
                problem = f"would be restored as a file, and as a directory for {display_path(path)}"
                yield paths.index(parent), f"{display_path(parent)} {problem}"


def _problem(path: bytes) -> str | None:
    try:
        safe_relative_path(path)
    except ArchiveError as error:
        return str(error)
    longest = max(map(len, path.split(b"/")))
    if longest > MAX_NAME_BYTES:
        return (
            f"{display_path(path)}: a name of {longest} bytes, and a directory takes up to {MAX_NAME_BYTES}; another "
            f"--format may add no suffix"
        )
    return None


def _rename(plan: RestorePlan, bad: Mapping[int, str], options: RestoreOptions) -> None:
    """Gives names made of shard and row to files whose path is lost, or bad."""
    if not bad and not plan.nameless:
        return
    folder = DAMAGED_NAMES.encode()
    while any(path == folder or path.startswith(folder + b"/") for path in plan.paths):
        folder += b"_"
    renamed: dict[int, dict[int, Renamed]] = {}
    for place, why in bad.items():
        shard, row = plan.places[place]
        suffix = re.search(rb"\.[A-Za-z0-9]{1,8}$", plan.paths[place])
        name = damaged_name(shard, row, None, folder) + (suffix[0] if suffix else b"")
        renamed.setdefault(shard, {})[row] = Renamed(name, why)
        plan.paths[place] = name
    for shard, row, codec, source_format in plan.nameless:
        name = _target(damaged_name(shard, row, source_format, folder), codec, source_format, options)
        renamed.setdefault(shard, {})[row] = Renamed(name, None)
        plan.paths.append(name)
    plan.units = [replace(unit, renamed=renamed.get(unit.index, {})) for unit in plan.units]


def _parents(path: bytes) -> Iterator[bytes]:
    cut = path.rfind(b"/")
    while cut > 0:
        yield path[:cut]
        cut = path.rfind(b"/", 0, cut)


@contextmanager
def restoring(
    archive: ArchiveReader, destination: Path, plan: RestorePlan, options: RestoreOptions, overwrite: bool
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


def _restore_identity(archive: ArchiveReader, options: RestoreOptions) -> str:
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


def _archive_identity(archive: ArchiveReader) -> str:
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
