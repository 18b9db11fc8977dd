"""Members of an uncompressed tar file, WebDataset shards among them, found again by their offset.

A compressed tar is refused: no member of it can be reached without what is before it, and a run that unpacked it for
each shard, or aside, would do in secret what one command does well. Hard and symbolic links to members become those
members under another name. A member NAME.cls is a file like any other, and what it says becomes the label of the
pictures whose names begin with NAME and a dot (github.com/webdataset/webdataset). A tar ends with two blocks of zeros;
one that ends after a whole member is taken without them, and this is said, because it may have had more members.
"""

from __future__ import annotations

import math
import posixpath
import tarfile
from collections.abc import Iterator, Sequence

from zippy_batch.archives.schema import MAX_LABEL_BYTES
from zippy_batch.errors import SourceError, UsageError
from zippy_batch.paths import display_path
from zippy_batch.sources.containers import Members, Opened, Wanted, counted, decoded, normal, opened
from zippy_batch.sources.directory import Container, SourceFile

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER_BYTES = 1 << 20
"""Most bytes of a long name or of pax records."""
_COPY_BYTES = 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


def find(file: Opened, members: Members, wanted: Wanted) -> None:
    """Raises UsageError for a compressed tar, and SourceError for a truncated or damaged one."""
    start = file.read_at(0, min(8, file.size_bytes))
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise UsageError(
                f"{file.name} is compressed, so its members cannot be read one by one; unpack it first ({command}), "
                f"and archive the plain .tar"
            )
    no_labels: list[bytes] = []
    for info in _walk(file, members):
        path, label = _bytes(info.name), None
        if info.isreg() and path.lower().endswith(b".cls") and wanted.labels_kind == "auto":
            label = _class(file, info, wanted)
            if label is None:
                no_labels.append(path)
        _take(info, path, members, label or None)
    members.follow_links()
    if no_labels:
        members.notes.append(
            f"no label: {counted(len(no_labels), 'member')} of {file.name} that should be one by the suffix .cls, over "
            f"{MAX_LABEL_BYTES} bytes or neither in UTF-8 nor in what --encoding says: {display_path(no_labels[0])}"
            f"{', ...' if len(no_labels) > 1 else ''}"
        )


def _class(file: Opened, info: tarfile.TarInfo, wanted: Wanted) -> str | None:
    """What a member says; None where it can be no label."""
    if info.size > MAX_LABEL_BYTES:
        return None
    try:
        label = decoded(file.read_at(info.offset_data, info.size), wanted.encoding).strip()
    except UnicodeDecodeError:
        return None
    return label if len(label.encode()) <= MAX_LABEL_BYTES else None


def read(containers: Sequence[Container], file: SourceFile) -> bytes:
    """Raises SourceError."""
    number, offset = file.place
    with opened(containers[number]) as tar:
        return tar.read_at(offset, file.size_bytes)


def _take(info: tarfile.TarInfo, path: bytes, members: Members, label: str | None) -> None:
    mtime_s = math.floor(info.mtime) if math.isfinite(info.mtime) else 1 << 62
    if info.isdir():
        members.add_directory(path)
    elif info.issparse():
        members.refuse(path, "a sparse file; unpack the tar, and archive the directory")
    elif info.isreg():
        members.add(path, info.size, mtime_s, (info.offset_data,), label)
    elif info.islnk():
        members.add_link(path, normal(_bytes(info.linkname)), mtime_s)
    elif info.issym():
        members.add_link(path, normal(posixpath.join(posixpath.dirname(path), _bytes(info.linkname))), mtime_s)
    else:
        members.refuse(path, "neither a file nor a directory")


def _walk(file: Opened, members: Members) -> Iterator[tarfile.TarInfo]:
    """All members. Raises SourceError for a tar that is not whole: Python's own reader takes a damaged header for the
    end."""
    at = data_end = 0
    try:
        with tarfile.open(fileobj=file.stream(_MAX_HEADER_BYTES), mode="r:", encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                # it would keep them all
                tar.members = []  # type: ignore[attr-defined]
                at = info.offset
                data_end = info.offset_data
                # links, and files with holes, may have the size of what is not there
                if info.isreg() and not info.issparse():
                    if not 0 <= info.size <= file.size_bytes - info.offset_data:
                        raise file.damaged(at, f"the member {info.name} has {info.size} bytes there")
                    data_end += info.size
                yield info
            at = tar.offset
    except SourceError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, LookupError) as error:
        if not _ends_after(file, data_end):
            raise file.damaged(at, f"no member of a tar file ({error})") from error
        at = file.size_bytes
    if at == file.size_bytes:
        members.notes.append(
            f"{file.name} has no end, which is two blocks of zeros; it may have been cut off between two members"
        )
        return
    if file.read_at(at, _BLOCK) != bytes(_BLOCK):
        raise file.damaged(at, "neither a member of a tar file nor its end")
    for offset in range(at, file.size_bytes, _COPY_BYTES):
        if file.read_at(offset, min(_COPY_BYTES, file.size_bytes - offset)).strip(b"\0"):
            raise SourceError(
                f"{file.name} goes on after its end at byte {at}, as tar files do that were joined; unpack it "
                f"(tar --ignore-zeros -xf), and archive the directory"
            )


def _ends_after(file: Opened, data_end: int) -> bool:
    """Whether nothing but the zeros that fill a member's last block follows its data."""
    rest = file.size_bytes - data_end
    return 0 <= rest <= -data_end % _BLOCK and not file.read_at(data_end, rest).strip(b"\0")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
