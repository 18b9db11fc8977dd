"""Which way up a picture is, wherever a file says so: XMP and ImageMagick's profiles in text become EXIF data, which an
archive keeps.

    XMP packet               -> orientation_in_xmp --+
    EXIF (a TIFF structure)  ------------------------+-> with_orientation -> EXIF
    Raw profile type exif    -> profile_in_text

The orientation is the value of TIFF's tag 274, 1..8; EXIF's own wins over that of XMP, as viewers have it.
"""

from __future__ import annotations

import re
import struct

EXIF_PREFIX = b"Exif\0\0"
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
XMP, IPTC, COMMENT, GAMMA = "XMP", "IPTC", "comment", "gamma"
"""Kinds of metadata that no archive keeps of a picture, as reports count them."""

_ORIENTATION, _SHORT = 274, 3
_ENTRY_BYTES = 12
_NAMESPACE = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']""")
_HEX = re.compile(rb"[0-9A-Fa-f]*")


def orientation_in_xmp(packet: bytes) -> int | None:
    """2..8, of a property tiff:Orientation, as an attribute or an element and by whatever prefix; None where there is
    none, or where it says that the picture is upright."""
    # UTF-16 and UTF-32 are allowed, and all that is looked for is ASCII
    text = packet.replace(b"\0", b"")
    for prefix in {b"tiff", *_NAMESPACE.findall(text)}:
        pattern = rb"[\s<]" + re.escape(prefix) + rb""":Orientation\s*(?:=\s*["']|>)\s*([2-8])\s*["'<]"""
        if found := re.search(pattern, text):
            return int(found[1])
    return None


def with_orientation(exif: bytes | None, orientation: int | None) -> bytes | None:
    """EXIF data with this orientation, unless it has one of its own. What is there keeps its place, since values point
    to each other: a longer first directory is put behind all. EXIF data that cannot be read is replaced."""
    if orientation is None:
        return exif
    try:
        return _with_entry(exif, orientation) if exif else _only(orientation)
    except (struct.error, ValueError):
        return _only(orientation)


def profile_in_text(text: bytes) -> bytes | None:
    """What ImageMagick has written in hexadecimal digits, after a name and a length; None where that is not so."""
    words = text.split(None, 2)
    digits = b"".join(words[2].split()) if len(words) == 3 else b""
    if len(words) < 3 or not words[1].isdigit() or len(digits) % 2 or not _HEX.fullmatch(digits):
        return None
    return bytes.fromhex(digits.decode())[: int(words[1])]


def _only(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _ORIENTATION, _SHORT, 1, orientation, 0, 0)


def _with_entry(exif: bytes, orientation: int) -> bytes:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF structure")
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, at)
    end = at + 2 + _ENTRY_BYTES * count
    (following,) = struct.unpack_from(order + "I", exif, end)
    entries = [exif[start : start + _ENTRY_BYTES] for start in range(at + 2, end, _ENTRY_BYTES)]
    tags = [struct.unpack_from(order + "H", entry)[0] for entry in entries]
    if _ORIENTATION in tags:
        return exif
    entries.insert(
        sum(tag < _ORIENTATION for tag in tags),
        struct.pack(order + "HHIHH", _ORIENTATION, _SHORT, 1, orientation, 0),
    )
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", following)
    # directories begin at even offsets
    padding = bytes(len(exif) % 2)
    start = struct.pack(order + "I", len(exif) + len(padding))
    return exif[:4] + start + exif[8:] + padding + directory
