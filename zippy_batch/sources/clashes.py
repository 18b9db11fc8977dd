"""Files that a source holds side by side and a directory cannot: restore would refuse after a run what is refused here.

Files, sorted by path -> refuse_clashes             one path twice; a file that is also a directory of other files
                      -> refuse_restored_clashes    a.png, restored as a.png.jpg, beside another file of that name
                      -> refuse_clashes_with_rows   both, of files that come to those of an archive
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from zippy_batch.paths import MAX_NAME_BYTES, MAX_PATH_BYTES, display_path, name_problem
from zippy_batch.sources.directory import Container, Files, SourceFile, require_none_refused
from zippy_batch.stores.object_path import Place

RESTORED_FORMAT = "jpeg"
"""Format of restored pictures, unless restore is asked for another one."""
_SUFFIX_BYTES = 8
"""More than any suffix has."""


def clashes(files: Iterable[SourceFile], containers: Sequence[Container]) -> Iterator[tuple[bytes, str]]:
    """Path and reason of each file that could not be beside the others; `files` are sorted by path."""
    directory = twice = b""
    for file, beginnings in _with_beginnings(files):
        for one in beginnings:
            if one.path == file.path:
                if one.path != twice:
                    twice = one.path
                    where = _where((one, file), containers)
                    yield twice, f"there twice{where}; unpack it, and archive the directory"
            elif file.path.startswith(one.path + b"/") and one.path != directory:
                directory = one.path
                yield directory, "a file, and a directory of other files"


def refuse_restored_clashes(place: Place, files: Files, read: Callable[[SourceFile], bytes]) -> None:
    """Raises UsageError naming the pictures whose restored file would be in the way of another one, or have too long a
    name. Only files that this may be true of are read."""
    refused = sorted(_restored_clashes(files, lambda file: _changes_format(read(file))))
    require_none_refused(place if isinstance(place, Path) else str(place), refused)


def refuse_clashes_with_rows(
    place: Place, fresh: Sequence[SourceFile], rows: Mapping[bytes, bool], read: Callable[[SourceFile], bytes] | None
) -> None:
    """Does what `refuse_restored_clashes` does, for files that become rows of an archive which has `rows`: paths, and
    whether their files get another suffix. `read` is None where no file of the source does."""
    new = {file.path for file in fresh}

    def changes(file: SourceFile) -> bool:
        return rows[file.path] if file.path not in new else read is not None and _changes_format(read(file))

    old = (SourceFile(path, 0, 0) for path in rows if path not in new)
    files = sorted([*fresh, *old], key=lambda file: file.path)
    refused = sorted([*clashes(files, ()), *_restored_clashes(files, changes, new)])
    require_none_refused(place if isinstance(place, Path) else str(place), refused)


def _restored_clashes(
    files: Iterable[SourceFile], changes: Callable[[SourceFile], bool], only: Set[bytes] | None = None
) -> Iterator[tuple[bytes, str]]:
    """Find the clashes; where `only` is given, those alone that these paths have a part in."""
    named: SourceFile | None = None
    for file, beginnings in _with_beginnings(files):
        if _too_long(file.path) and (only is None or file.path in only) and changes(file):
            suffix = display_path(_suffix(file.path))
            yield file.path, f"too long for the suffix {suffix} that it would get on restore; {_ADVICE}"
        for one in beginnings:
            new = one.path + _suffix(one.path)
            if one is named or new == one.path or not (file.path == new or file.path.startswith(new + b"/")):
                continue
            if (only is None or one.path in only or file.path in only) and changes(one):
                named = one
                yield one.path, f"would be restored as {display_path(new)}, which is there as well; {_ADVICE}"


_ADVICE = "rename one, or archive with --exact, which keeps such files as they are"


def _suffix(path: bytes) -> bytes:
    """What a picture of another format has behind its path when it is restored."""
    from zippy_batch.images.pixels import restored_path

    return restored_path(path, "", RESTORED_FORMAT)[len(path) :]


def _changes_format(data: bytes) -> bool:
    from zippy_batch.images.pixels import Picture, read_picture

    found = read_picture(data)
    return isinstance(found, Picture) and found.facts.format != RESTORED_FORMAT


def _too_long(path: bytes) -> bool:
    name_bytes = len(path) - path.rfind(b"/") - 1
    is_near = name_bytes > MAX_NAME_BYTES - _SUFFIX_BYTES or len(path) > MAX_PATH_BYTES - _SUFFIX_BYTES
    return is_near and name_problem(path + _suffix(path)) is not None


def _with_beginnings(files: Iterable[SourceFile]) -> Iterator[tuple[SourceFile, list[SourceFile]]]:
    """Each file, and those before it whose whole paths its own path begins with: in the order of bytes, all that begins
    with a path follows it."""
    beginnings: list[SourceFile] = []
    for file in files:
        while beginnings and not file.path.startswith(beginnings[-1].path):
            beginnings.pop()
        yield file, beginnings
        # of many of one path the first is enough: all of them would take the square of the time
        if not beginnings or beginnings[-1].path != file.path:
            beginnings.append(file)


def _where(files: tuple[SourceFile, SourceFile], containers: Sequence[Container]) -> str:
    if not all(file.place for file in files):
        return ""
    return ", in " + " and ".join(f"{containers[n].path.name} at {at}" for n, at, *_ in (file.place for file in files))
