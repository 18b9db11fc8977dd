"""A directory -> a sorted listing of its files -> the content of each. Other sources are in `sources`.

    directory -> find_files -> Listing.files -> read_file -> bytes

A listing is as long as a dataset, so its files are kept packed and, where they are many, on disk: 10^8 take 170 MB of
memory (`benchmarks/scale.py`).
"""

from __future__ import annotations

import heapq
import io
import marshal
import os
import stat
import struct
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import NoReturn, overload

from zippy_batch.errors import SourceError, UsageError
from zippy_batch.paths import display_path, is_below, name_problem
from zippy_batch.sources.selection import FileSelection
from zippy_batch.stores.atomic_file import writing

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused by name before a run."""
_MAX_VISITS = 1000
"""Paths by which links may lead to one directory: links to links multiply."""
_SHOWN = 10
"""Files that an error message names before it only counts."""
_BLOCK_FILES = 1024
_SORTED_FILES = 128 * _BLOCK_FILES
"""Sorted in memory at a time: 25 MB."""
_IN_MEMORY_BYTES = 16 << 20
"""Bytes of packed files held in memory; more of them go to disk."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A run holds one for each of its files, of which there may be millions."""

    path: bytes
    """Relative to the listed directory."""
    size_bytes: int
    mtime_s: int
    """Whole seconds since 1970, rounded down."""
    label: str | None = None
    place: tuple[int, ...] = ()
    """Position of a file in another one: the number of that container, and where in it; empty for a file by itself."""
    state: int = field(default=0, compare=False)
    """Changes with the file by itself (`file_state`), on this file system; 32 bits."""


@dataclass(frozen=True)
class Container:
    """A file that holds files, as it was when it was listed."""

    path: Path
    size_bytes: int
    mtime_s: int
    state: int = field(default=0, compare=False)
    """What a SourceFile has as its state."""


def file_state(mtime_ns: int, ctime_ns: int) -> int:
    """32 bits that tell a file from the same file changed: a change that leaves its size and the second of its time as
    they were shows in the nanoseconds, and in the time of the last change of any kind, which no program can set."""
    return zlib.crc32(struct.pack("<qq", mtime_ns, ctime_ns))


class Files(Sequence[SourceFile]):
    """Any number of files, sorted by path, byte by byte, in little memory. It stays in the process that made it.

    Some 10 to 14 bytes of each are kept, in the directory for temporary files (TMPDIR) where they come to more than
    `_IN_MEMORY_BYTES`. Raises WriteError where there is no room for them.
    """

    def __init__(self, files: Iterable[SourceFile] = ()) -> None:
        by_path = attrgetter("path")
        unsorted, blocks, runs = iter(files), _Blocks(), []
        last, is_in_order = b"", True
        while run := sorted(islice(unsorted, _SORTED_FILES), key=by_path):
            is_in_order = is_in_order and last <= run[0].path
            last = run[-1].path
            runs.append(blocks.extend(run))
        if not is_in_order:
            found, blocks = blocks, _Blocks()
            blocks.extend(heapq.merge(*map(found.files, runs), key=by_path))
        self._blocks = blocks
        self._kept: tuple[int, list[SourceFile]] = -1, []
        """The block that was read last."""

    @property
    def labelled(self) -> bool:
        """Whether any has a label."""
        return self._blocks.labelled

    @property
    def size_bytes(self) -> int:
        return self._blocks.bytes_until[-1]

    def bytes_before(self, index: int) -> int:
        """Sizes of the first `index` files, added up."""
        block, rest = divmod(index, _BLOCK_FILES)
        before = self._blocks.bytes_until[block]
        return before + sum(file.size_bytes for file in self._block(block)[:rest]) if rest else before

    def __len__(self) -> int:
        return self._blocks.count

    def __iter__(self) -> Iterator[SourceFile]:
        return self._blocks.files(range(len(self._blocks)))

    @overload
    def __getitem__(self, index: int) -> SourceFile: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SourceFile, ...]: ...

    def __getitem__(self, index: int | slice) -> SourceFile | tuple[SourceFile, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        block, rest = divmod(range(len(self))[index], _BLOCK_FILES)
        return self._block(block)[rest]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a list of files is not sent to workers, only the files of a shard")

    def _block(self, number: int) -> list[SourceFile]:
        kept, block = self._kept
        if kept != number:
            block = self._blocks.read(number)
            self._kept = number, block
        return block


class FoundFiles:
    """Files in the order in which they are found, in little memory."""

    def __init__(self, files: Iterable[SourceFile] = ()) -> None:
        self._blocks = _Blocks()
        self._last: list[SourceFile] = []
        for file in files:
            self.append(file)

    def append(self, file: SourceFile) -> None:
        self._last.append(file)
        if len(self._last) == _BLOCK_FILES:
            self._blocks.extend(self._last)
            self._last = []

    def __iter__(self) -> Iterator[SourceFile]:
        yield from self._blocks.files(range(len(self._blocks)))
        yield from self._last


class _Blocks:
    """Files in the order in which they come, packed `_BLOCK_FILES` at a time, column by column."""

    def __init__(self) -> None:
        self.count = 0
        self.labelled = False
        self.bytes_until = array("Q", [0])
        """Sizes of the files of the first blocks, added up."""
        self._ends = array("Q", [0])
        self._memory = bytearray()
        self._disk: io.FileIO | None = None

    def extend(self, files: Iterable[SourceFile]) -> range:
        """The numbers of their blocks; all blocks but the last of all are full."""
        first, remaining = len(self), iter(files)
        while block := list(islice(remaining, _BLOCK_FILES)):
            self._append(zlib.compress(_packed(block), 1))
            self.count += len(block)
            self.labelled = self.labelled or any(file.label is not None for file in block)
            self.bytes_until.append(self.bytes_until[-1] + sum(file.size_bytes for file in block))
        return range(first, len(self))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, number: int) -> list[SourceFile]:
        start, end = self._ends[number : number + 2]
        # reads at an offset move nothing that another thread would have to know of
        data = self._memory[start:end] if self._disk is None else os.pread(self._disk.fileno(), end - start, start)
        return _unpacked(zlib.decompress(data))

    def files(self, numbers: range) -> Iterator[SourceFile]:
        return chain.from_iterable(map(self.read, numbers))

    def _append(self, data: bytes) -> None:
        self._ends.append(self._ends[-1] + len(data))
        if self._disk is None:
            self._memory += data
            if len(self._memory) <= _IN_MEMORY_BYTES:
                return
            data, self._memory = bytes(self._memory), bytearray()
        with writing(f"the list of files, in {tempfile.gettempdir()},"):
            if self._disk is None:
                # closed, and gone, when it is collected
                self._disk = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            while data:
                data = data[self._disk.write(data) :]


def _packed(files: Sequence[SourceFile]) -> bytes:
    numbers = array("q", chain((file.size_bytes for file in files), (file.mtime_s for file in files)))
    states = array("I", [file.state for file in files])
    names = [file.path for file in files], [file.label for file in files], [file.place for file in files]
    return marshal.dumps((numbers.tobytes(), states.tobytes(), *names))


def _unpacked(data: bytes) -> list[SourceFile]:
    packed, states, paths, labels, places = marshal.loads(data)
    numbers = array("q", packed)
    sizes, times = numbers[: len(paths)], numbers[len(paths) :]
    return list(map(SourceFile, paths, sizes, times, labels, places, array("I", states)))


@dataclass(frozen=True)
class Listing:
    files: Files
    empty_directories: int
    """Directories without any entry; they are not archived."""
    containers: tuple[Container, ...] = ()
    """What the files are in, by number."""
    notes: tuple[str, ...] = ()
    """What a person should know who thinks that everything is archived."""


def list_files(root: Path) -> Listing:
    """Every file below a directory, links inside the tree followed.

    Raises UsageError naming everything that could not be archived (see `find_files`), before anything is read.
    """
    listing, refused = find_files(root)
    require_none_refused(root, refused)
    return listing


def require_none_refused(root: Path | str, refused: Sequence[tuple[bytes, str]]) -> None:
    """Raises UsageError that names what could not be archived."""
    if refused:
        shown = "\n".join(f"  {display_path(path) or '.'}: {why}" for path, why in refused[:_SHOWN])
        more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        count = f"{len(refused)} entries" if len(refused) > 1 else "one entry"
        shown_root = root if isinstance(root, str) else display_path(os.fsencode(root))
        raise UsageError(f"{shown_root}: {count} cannot be archived; remove or rename:\n{shown}{more}")


def find_files(root: Path, selection: FileSelection | None = None) -> tuple[Listing, list[tuple[bytes, str]]]:
    """Every file below a directory that is selected, and what is no such file: its path and the reason, sorted.

    Refused are files over `MAX_FILE_BYTES`, links that are broken, circular or lead outside, sockets, pipes and
    devices, what may not be read, and names that restore would refuse. Raises UsageError where
    `root` is no directory.
    """
    top = os.fsencode(root)
    if not os.path.isdir(top):
        raise UsageError(f"{display_path(top)}: not a directory")
    walk = _TreeWalk(os.path.realpath(top), selection or FileSelection())
    files = Files(walk.files())
    return Listing(files, walk.empty_directories), sorted(walk.refused)


class _TreeWalk:
    """Findings of one walk over a directory tree."""

    def __init__(self, top: bytes, selection: FileSelection):
        self._top, self._selection = top, selection
        self._visits: dict[tuple[int, int], int] = {}
        self.refused: list[tuple[bytes, str]] = []
        self.empty_directories = 0

    def files(self) -> Iterator[SourceFile]:
        """Every file, in any order."""
        pending: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
        while pending:
            relative, ancestors = pending.pop()
            try:
                identity = self._enter(relative, ancestors)
                if identity is None:
                    continue
                is_empty = True
                with os.scandir(self._full(relative)) as scan:
                    for entry in scan:
                        is_empty = False
                        path = relative + b"/" + entry.name if relative else entry.name
                        found = self._look(entry, path)
                        if not (self._selection.enters(path) if found is None else self._selection.takes(path)):
                            continue
                        if found is None:
                            pending.append((path, (*ancestors, identity)))
                        elif isinstance(found, str):
                            self.refused.append((path, found))
                        else:
                            yield found
                self.empty_directories += is_empty
            except OSError as error:
                self.refused.append((relative, f"directory cannot be read ({error.strerror})"))

    def _full(self, relative: bytes) -> bytes:
        return os.path.join(self._top, relative) if relative else self._top

    def _enter(self, relative: bytes, ancestors: tuple[tuple[int, int], ...]) -> tuple[int, int] | None:
        """(device, inode) of a directory whose parents have the numbers `ancestors`; None where it is refused."""
        status = os.stat(self._full(relative))
        identity = (status.st_dev, status.st_ino)
        self._visits[identity] = self._visits.get(identity, 0) + 1
        if identity in ancestors:
            self.refused.append((relative, "link to a directory that it is in"))
        elif self._visits[identity] > _MAX_VISITS:
            self.refused.append((relative, f"links lead here by more than {_MAX_VISITS} paths"))
        else:
            return identity
        return None

    def _look(self, entry: os.DirEntry[bytes], path: bytes) -> SourceFile | str | None:
        """A file, why it is none that can be archived, or None for a directory to walk."""
        try:
            status = entry.stat()
            is_outside = entry.is_symlink() and not is_below(os.path.realpath(entry.path), self._top)
        except OSError:
            return "broken or circular link" if entry.is_symlink() else "vanished"
        if stat.S_ISDIR(status.st_mode) and not is_outside:
            return None
        why = file_problem(entry.path, status, is_outside) or name_problem(path)
        return why or found_file(path, status)


def found_file(path: bytes, status: os.stat_result) -> SourceFile:
    state = file_state(status.st_mtime_ns, status.st_ctime_ns)
    return SourceFile(path, status.st_size, status.st_mtime_ns // 10**9, state=state)


def file_problem(path: bytes, status: os.stat_result, is_outside: bool) -> str | None:
    """What keeps something in a directory from being archived, whatever its name."""
    if is_outside:
        return "link to something outside the directory"
    if not stat.S_ISREG(status.st_mode):
        return "neither a file nor a directory"
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size} bytes, over the limit of 1 GiB"
    return None if os.access(path, os.R_OK) else "may not be read (permission)"


def read_file(root: Path, file: SourceFile) -> bytes:
    """Content of a listed file; SourceError when it is gone, cannot be read or is not what was listed."""
    name = display_path(file.path)
    try:
        # not to hang where a file was replaced by a pipe
        descriptor = os.open(os.path.join(os.fsencode(root), file.path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            found = (status.st_size, status.st_mtime_ns // 10**9)
            if found != (file.size_bytes, file.mtime_s) or not stat.S_ISREG(status.st_mode):
                raise SourceError(
                    f"{name}: changed during the run: expected {file.size_bytes} bytes of time {file.mtime_s}, "
                    f"found {found[0]} bytes of time {found[1]}; run again when the directory is at rest"
                )
            data = stream.readall()
            written_ns = os.fstat(stream.fileno()).st_mtime_ns
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror}") from error
    if len(data) != file.size_bytes or written_ns != status.st_mtime_ns:
        raise SourceError(
            f"{name}: changed while it was read: expected {file.size_bytes} bytes, read {len(data)}; "
            "run again when the directory is at rest"
        )
    return data
