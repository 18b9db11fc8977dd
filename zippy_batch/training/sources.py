"""What a user wants a model for -> image files to train on, and some that are kept apart to judge the model by.

directory                 every image file below it
list                      a text file with a path per line, relative to the file's own directory
archive                   restored into the run's directory first
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zippy_batch.archive import MANIFEST_NAME
from zippy_batch.errors import UsageError
from zippy_batch.headers import Refused, read_header
from zippy_batch.plan import spread

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MOST_FILES = 60_000
"""Files that a run looks at, evenly chosen: more do not make a model of this size better."""
MOST_HELD_OUT = 128
"""Files kept apart, at most a tenth of all."""
FEWEST_FILES = 16
"""Below this there is nothing to train on."""


@dataclass(frozen=True)
class Sources:
    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    sizes: Counter[tuple[int, int]]
    """How many files to train on have each (height, width)."""
    skipped: int
    """Files that are no images that can be read."""


def gather(roots: Sequence[Path], run: Path) -> Sources:
    """Raises UsageError for what is not there, and where there are too few images."""
    found = {
        path.resolve()
        for root in roots
        for path in _files_of(root, run)
        # what an earlier part of this run restored from an archive is no source of its own
        if _is_archive(root) or not path.resolve().is_relative_to(run)
    }
    paths = spread(sorted(found), MOST_FILES)
    readable: list[tuple[Path, tuple[int, int]]] = []
    for path in paths:
        size = _size_of(path)
        if size is not None:
            readable.append((path, size))
    if len(readable) < FEWEST_FILES:
        looked = ", ".join(map(str, roots))
        raise UsageError(
            f"{looked}: {len(readable)} images that can be read, and training needs {FEWEST_FILES} or more"
        )
    order = list(range(len(readable)))
    random.Random(0).shuffle(order)
    held = set(order[: min(MOST_HELD_OUT, max(2, len(readable) // 10))])
    return Sources(
        tuple(path for i, (path, _) in enumerate(readable) if i not in held),
        tuple(path for i, (path, _) in enumerate(readable) if i in held),
        Counter(size for i, (_, size) in enumerate(readable) if i not in held),
        len(paths) - len(readable),
    )


def _files_of(root: Path, run: Path) -> list[Path]:
    if _is_archive(root):
        return list_images([_restored(root, run)])
    if root.is_dir():
        return list_images([root])
    if root.is_file():
        return _listed(root)
    raise UsageError(f"{root}: no such directory, list or archive")


def list_images(roots: Sequence[Path]) -> list[Path]:
    """Image files below directories, by their suffix."""
    return sorted(p for root in roots for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _is_archive(root: Path) -> bool:
    return root.suffix == ".parquet" or (root / MANIFEST_NAME).is_file()


def _listed(file: Path) -> list[Path]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a list of paths, one per line in UTF-8: {error}") from error
    paths = [file.parent / line.strip() for line in lines if line.strip()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{file}: {len(missing)} of {len(paths)} paths are no files, the first: {missing[0]}")
    return paths


def _restored(archive: Path, run: Path) -> Path:
    from zippy_batch import pipeline
    from zippy_batch.config import RestoreOptions, RunOptions

    facts = archive.stat()
    which = f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    target = run / "sources" / hashlib.sha256(which.encode()).hexdigest()[:16]
    whole = target.with_name(f"{target.name}.whole")
    if not whole.exists():
        pipeline.restore(archive, target, RestoreOptions(device="cpu"), RunOptions(workers=1, overwrite=True))
        whole.touch()
    return target


def _size_of(path: Path) -> tuple[int, int] | None:
    """(height, width), None for what is no image."""
    try:
        header = read_header(path.read_bytes())
    except (Refused, OSError):
        return None
    return header.height, header.width
