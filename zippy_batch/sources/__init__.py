"""What can be archived -> a sorted listing, and then the content of any file in it, in any order, on any worker.

    files       a directory; every file below it                           (directory)
    list        a text file that names files, one path a line              (listfile)
    tar         members of an uncompressed tar file, or WebDataset shard   (tar)
    zip         members of a zip file                                      (zip_file)
    parquet     a column of images, as Hugging Face datasets have it       (parquet)
    recordio    records of an MXNet .rec file                              (recordio)
    files in an object store, of the kind files too                        (object_store)

    path, Wanted -> list_source -> Source, Listing;    Source.reader(files) -> read(file) -> bytes

Every kind keeps what a directory of the same files would keep, and refuses by name what it would refuse; what is left
out all the same stands in `Listing.notes`. What restore would refuse after a run is refused before it (`clashes`). The
files of a container are found again by `SourceFile.place`, so that no worker walks through what it does not need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from zippy_batch.archives.info import MANIFEST_NAME
from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path
from zippy_batch.sources import labels, listfile, parquet, recordio, tar, zip_file
from zippy_batch.sources.clashes import clashes
from zippy_batch.sources.containers import (
    Members,
    Opened,
    Wanted,
    container_at,
    counted,
    folder_label,
    opened,
    with_classes,
)
from zippy_batch.sources.directory import (
    Container,
    Files,
    Listing,
    SourceFile,
    find_files,
    read_file,
    require_none_refused,
)
from zippy_batch.sources.object_store import ObjectReader, list_objects
from zippy_batch.sources.selection import FileSelection, left_by_systems
from zippy_batch.stores.object_path import ObjectPath, Place

__all__ = ["Read", "Source", "Wanted", "list_source"]

Read = Callable[[SourceFile], bytes]

_FIND: dict[str, Callable[[Opened, Members, Wanted], None]] = {
    "tar": tar.find,
    "zip": zip_file.find,
    "parquet": parquet.find,
    "recordio": recordio.find,
}
_READ: dict[str, Callable[[Sequence[Container], SourceFile], bytes]] = {
    "tar": tar.read,
    "zip": zip_file.read,
    "recordio": recordio.read,
}
_SUFFIX = {"list": ".txt", "tar": ".tar", "zip": ".zip", "parquet": ".parquet", "recordio": ".rec"}
_BESIDE = {"recordio": (".idx", ".lst")}
"""Suffixes of files that belong to a container and hold no images."""
_COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst")
_SHOWN = 5
"""Files that a message names before it only counts."""


@dataclass(frozen=True)
class Source:
    """Reads the files of a listing. Pickles."""

    kind: str
    root: Place
    """Directory that paths are relative to; not used where there are containers."""
    containers: tuple[Container, ...] = ()
    image_column: str | None = None
    """Column of images of Parquet files, where it was asked for."""

    def reader(self, files: Sequence[SourceFile]) -> Read:
        """Reads any of these files, from any thread. It raises SourceError for one that cannot be read, or is not what
        was listed."""
        if isinstance(self.root, ObjectPath):
            return ObjectReader(self.root, files)
        if not self.containers:
            return partial(read_file, self.root)
        if self.kind == "parquet":
            return parquet.ParquetReader(self.containers, files, self.image_column).read
        return partial(_READ[self.kind], self.containers)


def list_source(path: Place, wanted: Wanted) -> tuple[Source, Listing]:
    """Every file of a source.

    Raises UsageError for what is no source, and naming what in it could not be archived or would be lost, before
    anything is written; SourceError for a container that is truncated or damaged.
    """
    selection = FileSelection(wanted.include, wanted.exclude)
    if isinstance(path, ObjectPath):
        if wanted.input not in ("auto", "files"):
            raise UsageError(f"{path}: --input {wanted.input} is read from a disk; bring it to this machine first")
        return Source("files", path), _finished(list_objects(path, selection), wanted, selection)
    kind = _kind(path, wanted.input)
    if kind not in ("files", "list"):
        source, listing = _list_containers(path, kind, wanted, selection)
        return source, _finished(listing, wanted, selection)
    if wanted.input == "auto" and path.is_dir() and _is_archive(path):
        raise UsageError(parquet.archive_as_source(display_path(os.fsencode(path))))
    listing, refused = find_files(path, selection) if kind == "files" else listfile.find(path, selection)
    require_none_refused(path, refused)
    root = path.absolute()
    return Source(kind, root if kind == "files" else root.parent), _finished(listing, wanted, selection)


def _finished(listing: Listing, wanted: Wanted, selection: FileSelection) -> Listing:
    """The listing with labels, and with notes about what was selected."""
    listing = _labelled(listing, wanted)
    notes = (*listing.notes, *selection.notes(), *left_by_systems(file.path for file in listing.files))
    return replace(listing, notes=notes)


def _is_archive(directory: Path) -> bool:
    return (directory / MANIFEST_NAME).is_file() and next(directory.glob("part-*.parquet"), None) is not None


def _labelled(listing: Listing, wanted: Wanted) -> Listing:
    """The listing with the labels that are not the source's own."""
    kind = wanted.labels_kind
    if kind == "table":
        return labels.label_from_table(listing, wanted)
    if kind == "pattern":
        return labels.label_by_pattern(listing, wanted)
    # of what containers hold, the folders are theirs
    if kind == "folders" and not listing.containers:
        files = Files(replace(file, label=folder_label(file.path)) for file in listing.files)
        return replace(listing, files=files)
    return listing


def _kind(path: Path, asked: str) -> str:
    """Raises UsageError where there is nothing, or what it is cannot be told."""
    shown = display_path(os.fsencode(path))
    if not path.exists():
        raise UsageError(f"there is no source {shown}")
    if asked != "auto":
        if path.is_dir() and asked == "list":
            raise UsageError(f"{shown} is a directory, and --input list is for a text file with a path a line")
        return asked
    if path.is_dir():
        return "files"
    kinds = [kind for kind, suffix in _SUFFIX.items() if path.suffix.lower() == suffix]
    if not kinds and path.suffix.lower() in _COMPRESSED:
        raise UsageError(
            f"{shown} is compressed, so what is in it cannot be read piece by piece; unpack it first, and archive the "
            f"directory or the plain .tar"
        )
    if not kinds:
        known = ", ".join(_SUFFIX.values())
        raise UsageError(f"{shown} is neither a directory nor a file that ends in {known}; say what it is with --input")
    return kinds[0]


def _list_containers(path: Path, kind: str, wanted: Wanted, selection: FileSelection) -> tuple[Source, Listing]:
    paths, notes = _containers_below(path, kind, wanted) if path.is_dir() else ([path], [])
    containers = tuple(container_at(one.absolute()) for one in paths)
    found: list[Members] = []
    for number, (one, container) in enumerate(zip(paths, containers, strict=True)):
        prefix = os.fsencode(one.relative_to(path).with_suffix("")) if path.is_dir() else b""
        found.append(Members(number, prefix, wanted.labels_kind))
        with opened(container) as file:
            _FIND[kind](file, found[-1], wanted)
    files = Files(chain.from_iterable(members.files for members in found))
    if kind == "tar" and files.labelled and wanted.labels_kind == "auto":
        files = Files(with_classes(files))
    if wanted.include or wanted.exclude:
        # only now, because links lead to members that are left out, and labels come from them
        files = Files(file for file in files if selection.takes(file.path))
    refused = [one for members in found for one in members.refused if selection.takes(one[0])]
    refused += clashes(files, containers)
    require_none_refused(path, sorted(refused))
    notes += [note for members in found for note in members.notes]
    empty_directories = sum(members.empty_directories for members in found)
    source = Source(kind, path.absolute(), containers, wanted.image_column)
    return source, Listing(files, empty_directories, containers, tuple(notes))


def _containers_below(path: Path, kind: str, wanted: Wanted) -> tuple[list[Path], list[str]]:
    """Containers of a kind in a directory, sorted, and what is left out. Raises UsageError where there is anything
    else."""
    suffix = _SUFFIX[kind]
    beside = (suffix, *_BESIDE.get(kind, ()))
    excluded = FileSelection(exclude=wanted.exclude)
    found = sorted((one for one in path.rglob("*") if not one.is_dir()), key=os.fsencode)
    found = [one for one in found if excluded.takes(os.fsencode(one.relative_to(path)))]
    others = [one for one in found if one.suffix.lower() not in beside]
    shown = ", ".join(display_path(os.fsencode(one.relative_to(path))) for one in others[:_SHOWN])
    shown += ", ..." if len(others) > _SHOWN else ""
    # Hadoop and all after it put such names beside tables, as _SUCCESS, and take them for no data
    refused = others if kind != "parquet" else [one for one in others if not one.name.startswith(("_", "."))]
    if refused and not wanted.leave_out:
        raise UsageError(
            f"{display_path(os.fsencode(path))}: {counted(len(others), 'file')} without the suffix {suffix} ({shown}); "
            f"take such files out, or leave them out with --leave-out"
        )
    notes = [f"left out: {counted(len(others), 'file')} without the suffix {suffix}: {shown}"] if others else []
    return [one for one in found if one.suffix.lower() == suffix], [*notes, *excluded.notes()]
