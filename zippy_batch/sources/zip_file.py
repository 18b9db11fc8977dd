"""Members of a zip file, stored or deflated, found again by the offset of their local header.

Format: PKWARE's APPNOTE 6.3.10. A name is UTF-8 where the zip says so, or where an extra field of Info-ZIP has it, or
where it can be; else it is in the code page that was asked for, or in that of MS-DOS. Programs of MS-DOS and Windows
may write backslashes between its parts. The central directory is read once, when the members are listed; a worker goes
to a member without it. A member never becomes more bytes than it declares.
"""

from __future__ import annotations

import calendar
import posixpath
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from zippy_batch.errors import SourceError
from zippy_batch.paths import display_path
from zippy_batch.sources.containers import Members, Opened, Wanted, normal, opened
from zippy_batch.sources.directory import Container, SourceFile

_MAX_DIRECTORY_BYTES = 1 << 30
_MAX_TARGET_BYTES = 4096
"""Most bytes of the target of a symbolic link."""
_LOCAL = struct.Struct("<4s22xHH")
"""Local header: signature, lengths of name and extra field."""
_MOST_DEFLATED = 1032
"""Bytes that one byte of deflated data can become."""
_ENCRYPTED, _UTF8 = 1, 0x800
_EPOCH_S = 315_532_800
"""1980-01-01, where time begins in a zip file: for members whose date is none."""
_UNIX = 3
_WITH_BACKSLASHES = {0, 6, 10, 14}
"""Systems that a name may be of: MS-DOS, OS/2, NTFS, VFAT."""
_UNIX_TIME, _UNICODE_PATH = 0x5455, 0x7075
"""Extra fields of Info-ZIP."""
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def find(file: Opened, members: Members, wanted: Wanted) -> None:
    """Raises SourceError for what is no zip file, or a truncated or damaged one."""
    try:
        with zipfile.ZipFile(file.stream(_MAX_DIRECTORY_BYTES)) as archive:
            infos = archive.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        LookupError,
        OverflowError,
        NotImplementedError,
        struct.error,
    ) as error:
        raise SourceError(
            f"{file.name} is no zip file, or truncated or damaged: {error}; its index is at its end. "
            f"Bring it back from where it is whole"
        ) from error
    infos.sort(key=lambda info: info.header_offset)
    end = 0
    guessed: list[bytes] = []
    for info in infos:
        try:
            path, is_guess = _path_of(info, wanted.encoding)
        except UnicodeDecodeError:
            problem = f"a name that is not in {wanted.encoding}; --encoding says which code page it is in"
            members.refuse(_stored_name(info), problem)
            continue
        if is_guess:
            guessed.append(path)
        if path.endswith(b"/"):
            members.add_directory(path)
            continue
        start, end = end, max(end, info.header_offset + _LOCAL.size + info.compress_size)
        why = _problem(info, file)
        if why or info.header_offset < start:
            members.refuse(path, why or "overlaps another member")
        else:
            _take(info, path, file, members)
    members.follow_links()
    if guessed:
        members.notes.append(
            f"names taken for code page 437, as {file.name} does not say what they are in: {len(guessed)}, such as "
            f"{display_path(guessed[0])}; --encoding says another one"
        )


def read(containers: Sequence[Container], file: SourceFile) -> bytes:
    """Raises SourceError."""
    number, offset, stored_bytes, method, crc = file.place
    with opened(containers[number]) as archive:
        return _content(archive, offset, stored_bytes, method, crc, file.size_bytes, file.path)


def _take(info: zipfile.ZipInfo, path: bytes, file: Opened, members: Members) -> None:
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    at = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
    if stat.S_ISLNK(mode) and info.file_size <= _MAX_TARGET_BYTES:
        target = _content(file, *at, info.file_size, path)
        members.add_link(path, normal(posixpath.join(posixpath.dirname(path), target)), _mtime_s(info))
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        members.refuse(path, "neither a file nor a directory")
    else:
        members.add(path, info.file_size, _mtime_s(info), at)


def _problem(info: zipfile.ZipInfo, file: Opened) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted; unpack it, and archive the directory"
    if info.compress_type not in _METHODS:
        return f"compressed by method {info.compress_type}, and only deflate is read; unpack it"
    if info.header_offset + _LOCAL.size + info.compress_size > file.size_bytes:
        return f"lies outside {file.name}"
    most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else _MOST_DEFLATED)
    if info.file_size > most or (info.compress_type == zipfile.ZIP_STORED and info.file_size != most):
        return f"{info.file_size} bytes, which cannot be in {info.compress_size}"
    return None


def _content(
    file: Opened, offset: int, stored_bytes: int, method: int, crc: int, size_bytes: int, path: bytes
) -> bytes:
    """Content of the member whose local header is at `offset`. Raises SourceError."""
    signature, name_bytes, extra_bytes = _LOCAL.unpack(file.read_at(offset, _LOCAL.size))
    if signature != b"PK\3\4":
        raise file.damaged(offset, f"no header of {display_path(path)}")
    data = file.read_at(offset + _LOCAL.size + name_bytes + extra_bytes, stored_bytes)
    if method == zipfile.ZIP_DEFLATED:
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            data = inflate.decompress(data, size_bytes + 1)
        except zlib.error as error:
            raise file.damaged(offset, f"{display_path(path)} cannot be inflated ({error})") from error
    if len(data) != size_bytes or zlib.crc32(data) != crc:
        raise file.damaged(offset, f"{display_path(path)} is not the {size_bytes} bytes of its checksum")
    return data


def _path_of(info: zipfile.ZipInfo, encoding: str | None) -> tuple[bytes, bool]:
    """The path, and whether its code page is a guess. Raises UnicodeDecodeError."""
    path, is_guess = _name_of(info, encoding)
    if info.create_system in _WITH_BACKSLASHES:
        path = path.replace(b"\\", b"/")
    return path, is_guess


def _name_of(info: zipfile.ZipInfo, encoding: str | None) -> tuple[bytes, bool]:
    """The name as UTF-8, or as it was stored where it is said to be that; and whether that is a guess."""
    if info.flag_bits & _UTF8:
        return info.orig_filename.encode("utf-8", "surrogateescape"), False
    stored = _stored_name(info)
    unicode_name = next((data for kind, data in _extra_fields(info.extra) if kind == _UNICODE_PATH), b"")
    # of a name that was changed since, the checksum is another one
    if unicode_name[:5] == struct.pack("<BI", 1, zlib.crc32(stored)):
        return unicode_name[5:], False
    if encoding is not None:
        return stored.decode(encoding).encode(), False
    try:
        stored.decode("utf-8")
    except UnicodeDecodeError:
        return info.orig_filename.encode("utf-8"), True
    return stored, False


def _stored_name(info: zipfile.ZipInfo) -> bytes:
    """The bytes of a name that is not said to be UTF-8."""
    return info.orig_filename.encode("cp437", "replace")


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    while len(extra) >= 4:
        kind, size_bytes = struct.unpack_from("<HH", extra)
        yield kind, extra[4 : 4 + size_bytes]
        extra = extra[4 + size_bytes :]


def _mtime_s(info: zipfile.ZipInfo) -> int:
    """Time in the extra field of Unix where it is there; else the time of MS-DOS, which has no zone, taken for UTC."""
    for kind, data in _extra_fields(info.extra):
        if kind == _UNIX_TIME and len(data) >= 5 and data[0] & 1:
            return int(struct.unpack_from("<i", data, 1)[0])
    try:
        return calendar.timegm(info.date_time)
    except ValueError:
        return _EPOCH_S
