"""What a user wants a model for -> image files to train on, and some that are kept apart to judge the model by.

directory                 every image file below it, found and read as `archive` does
list                      a text file with a path per line, relative to the file's own directory
archive                   restored into the run's directory first

Which files are taken and which are held out is decided by a hash of each one's path below its source. A file that is
added later therefore never moves one that was trained on to those that are held out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.archives.info import MANIFEST_NAME
from zippy_batch.errors import UsageError
from zippy_batch.images.probe import MAX_IMAGE_BYTES, TRUNCATED, Refused, read_header, sniff_format
from zippy_batch.sources.directory import find_files

MOST_FILES = 60_000
"""Files that a run looks at: more do not make a model of this size better."""
MOST_HELD_OUT = 128
"""Files kept apart,"""
_HELD_OUT_SHARE = 0.1
"""of about this share of all, by their hashes,"""
_LEAST_HELD_OUT = 2
"""or the first two, where hardly any are in it."""
FEWEST_FILES = 16
"""Fewest files that there is anything to train on."""
RESTORED = "sources"
"""Folder in the run's directory that holds the files of archives."""
_PREFIX_BYTES = 1 << 16
"""Most JPEG files say their size this early."""


@dataclass(frozen=True)
class Sources:
    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    sizes: Counter[tuple[int, int]]
    """How many files to train on have each (height, width)."""
    skipped: int
    """Files that `archive` would refuse or keep as they are."""
    bytes: int
    """Bytes of all that are not skipped."""
    digest: str
    """SHA-256, hex, of the paths, sizes and times of all that are not skipped."""


@dataclass(frozen=True)
class _File:
    path: Path
    name: bytes
    """Its path below its source."""
    size_bytes: int
    mtime_s: int

    @property
    def rank(self) -> bytes:
        """Even over files, whatever they are called."""
        return hashlib.sha256(self.name).digest()


def gather(roots: Sequence[Path], run: Path) -> Sources:
    """Raises UsageError for what is not there, and where there are too few images."""
    found: dict[Path, _File] = {}
    skipped = 0
    for root in roots:
        files, refused = _files_of(root, run)
        skipped += refused
        for file in files:
            # what an earlier part of this run restored from an archive is no source of its own
            if _is_archive(root) or not file.path.is_relative_to(run):
                found.setdefault(file.path, file)
    chosen: list[tuple[_File, tuple[int, int]]] = []
    for file in sorted(found.values(), key=lambda file: (file.rank, file.path)):
        size = _size_of(file.path) if file.size_bytes <= MAX_IMAGE_BYTES else None
        if size is None:
            skipped += 1
        else:
            chosen.append((file, size))
        if len(chosen) == MOST_FILES:
            break
    if len(chosen) < FEWEST_FILES:
        looked = ", ".join(map(str, roots))
        raise UsageError(
            f"{looked}: {len(chosen)} images that can be read, and training needs {FEWEST_FILES} or more; "
            f"{skipped} files were skipped (such as links that lead out of a directory; a list may name those)"
        )
    held = _held_out([file for file, _ in chosen])
    return Sources(
        tuple(file.path for file, _ in chosen[held:]),
        tuple(file.path for file, _ in chosen[:held]),
        Counter(size for _, size in chosen[held:]),
        skipped,
        sum(file.size_bytes for file, _ in chosen),
        _digest([file for file, _ in chosen]),
    )


def _held_out(ranked: Sequence[_File]) -> int:
    """How many of the first are held out. More files never bring one among them that was there and was not."""
    below = sum(int.from_bytes(file.rank[:4], "big") < _HELD_OUT_SHARE * 2**32 for file in ranked)
    return min(max(below, _LEAST_HELD_OUT), MOST_HELD_OUT)


def _digest(files: Sequence[_File]) -> str:
    facts = [[os.fsdecode(file.name), file.size_bytes, file.mtime_s] for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _files_of(root: Path, run: Path) -> tuple[list[_File], int]:
    """And the number of those that `archive` would refuse, such as links to somewhere else."""
    if _is_archive(root):
        return _below(_restored(root, run), mtime_s=int(root.stat().st_mtime))
    if root.is_dir():
        return _below(root)
    if root.is_file():
        return _listed(root), 0
    raise UsageError(f"{root}: no such directory, list or archive")


def _below(root: Path, mtime_s: int | None = None) -> tuple[list[_File], int]:
    listing, refused = find_files(root)
    files = [
        _File(
            (root / os.fsdecode(file.path)).resolve(),
            file.path,
            file.size_bytes,
            file.mtime_s if mtime_s is None else mtime_s,
        )
        for file in listing.files
    ]
    return files, len(refused)


def _is_archive(root: Path) -> bool:
    return root.suffix == ".parquet" or (root / MANIFEST_NAME).is_file()


def _listed(file: Path) -> list[_File]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a list of paths, one per line in UTF-8: {error}") from error
    named = [line.strip() for line in lines if line.strip()]
    missing = [file.parent / name for name in named if not (file.parent / name).is_file()]
    if missing:
        raise UsageError(f"{file}: {len(missing)} of {len(named)} paths are no files, the first: {missing[0]}")
    paths = [(file.parent / name).resolve() for name in named]
    facts = [path.stat() for path in paths]
    return [
        _File(path, os.fsencode(os.path.normpath(name)), fact.st_size, int(fact.st_mtime))
        for path, name, fact in zip(paths, named, facts, strict=True)
    ]


def _restored(archive: Path, run: Path) -> Path:
    from zippy_batch.config import RestoreOptions, RunOptions
    from zippy_batch.run import pipeline

    facts = archive.stat()
    which = f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    target = run / RESTORED / hashlib.sha256(which.encode()).hexdigest()[:16]
    whole = target.with_name(f"{target.name}.whole")
    if not whole.exists():
        pipeline.restore(archive, target, RestoreOptions(device="cpu"), RunOptions(workers=1, overwrite=True))
        whole.touch()
    return target


def _size_of(path: Path) -> tuple[int, int] | None:
    """(height, width), None for what is no image that can be archived as one, as far as its header tells."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(_PREFIX_BYTES)
            if sniff_format(begin) is None:
                return None
            if len(begin) == _PREFIX_BYTES and sniff_format(begin) == "jpeg":
                try:
                    read_header(begin)
                except Refused as refused:
                    if refused.reason == TRUNCATED and refused.height and refused.width:
                        return refused.height, refused.width
            header = read_header(begin + stream.read())
    except (Refused, OSError):
        return None
    return header.height, header.width
