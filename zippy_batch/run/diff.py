"""diff and dedupe: rows of two archives, or of one, compared by their columns and payloads; nothing is decoded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.config import RunOptions
from zippy_batch.errors import UsageError
from zippy_batch.images.dhash import MOST_BITS, near_groups
from zippy_batch.paths import display_path
from zippy_batch.run.copy_rows import shown_place
from zippy_batch.run.near import hash_archive
from zippy_batch.run.pipeline import Clock, Codecs, Watch
from zippy_batch.run.report import count_text
from zippy_batch.stores.object_path import Place, place

CHANGE_KINDS = ("content", "quality", "label")
"""What of a row may have changed."""
_SHOWN = 20
_SOURCE = ("source_bytes", "source_format", "width", "height")
_QUALITY = ("codec", "quality", "psnr", "ssim")
_PAYLOAD = ("payload", "raw", "jpeg_header")
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class RowFacts:
    source: tuple[Any, ...]
    quality: tuple[Any, ...]
    """Codec first."""
    label: str | None
    digest: bytes
    """BLAKE2b of codec and payload; of exact rows with the header."""


@dataclass(frozen=True)
class Change:
    path: str
    kinds: tuple[str, ...]
    """Of CHANGE_KINDS."""


@dataclass(frozen=True)
class DiffReport:
    a: str
    b: str
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[Change, ...]
    same: int
    """Rows that are equal in all that is compared."""

    @property
    def exit_code(self) -> int:
        """0 where nothing differs, 1 where something does."""
        return 1 if self.only_a or self.only_b or self.changed else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "exit_code": self.exit_code,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "changed": [{"path": change.path, "what": list(change.kinds)} for change in self.changed],
            "same": self.same,
        }

    def lines(self, columns: int | None = None) -> list[str]:
        changed = [f"{change.path} ({', '.join(change.kinds)})" for change in self.changed]
        return [
            f"{count_text(self.same, 'file')} the same, {len(self.changed)} changed, {len(self.only_a)} only in "
            f"{self.a}, {len(self.only_b)} only in {self.b}",
            *_listed("- ", self.only_a),
            *_listed("+ ", self.only_b),
            *_listed("! ", changed),
        ]


@dataclass(frozen=True)
class DuplicateGroup:
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    """Of each path."""

    @property
    def disagrees(self) -> bool:
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class DedupeReport:
    path: str
    rows: int
    groups: tuple[DuplicateGroup, ...]
    """Those whose labels disagree first, then the largest."""
    near: int | None = None
    """How many bits the hashes of pictures may differ in; None where only what is the same was looked for."""

    exit_code = 0

    @property
    def spare(self) -> int:
        """Rows that say nothing, or with `near` little, that another one does not."""
        return sum(len(group.paths) - 1 for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "files": self.rows,
            "near_bits": self.near,
            "duplicates": self.spare,
            "groups": [
                {"paths": list(group.paths), "labels": list(group.labels), "labels_disagree": group.disagrees}
                for group in self.groups
            ],
        }

    def lines(self, columns: int | None = None) -> list[str]:
        disagreeing = sum(group.disagrees for group in self.groups)
        out = [
            f"{self.path}: {self.spare} of {count_text(self.rows, 'file')} "
            f"{'are there already' if self.near is None else 'look like another one'}, in "
            f"{count_text(len(self.groups), 'group')}; the labels of {disagreeing} disagree"
        ]
        shown = [
            ("labels disagree: " if group.disagrees else "")
            + ", ".join(
                f"{path} ({label})" if group.disagrees else path
                for path, label in zip(group.paths[:_SHOWN], group.labels, strict=False)
            )
            + (f" and {len(group.paths) - _SHOWN} more" if len(group.paths) > _SHOWN else "")
            for group in self.groups
        ]
        return [*out, *_listed("", shown)]


def _listed(sign: str, items: Any) -> list[str]:
    more = len(items) - _SHOWN
    return [*(f"{sign}{item}" for item in items[:_SHOWN]), *([f"{sign}and {more} more"] if more > 0 else [])]


def diff(a: str | Place, b: str | Place) -> DiffReport:
    """Finds paths that only one of two archives has, and rows that differ in content, quality or label.

    The content differs where the source had another size, format or number of pixels, and where rows that were coded in
    the same way by the same model have another payload. Raises ArchiveError for damage, UsageError where there is no
    archive.
    """
    with ArchiveReader.open(place(a)) as one, ArchiveReader.open(place(b)) as other:
        left, right = _facts(one), _facts(other)
        models = {codec for codec, model in one.info.models.items() if other.info.models.get(codec) == model}
        comparable = frozenset({*models, "raw"})
    changed, same = [], 0
    for path in sorted(left.keys() & right.keys()):
        kinds = _changes(left[path], right[path], comparable)
        same += not kinds
        changed += [Change(display_path(path), kinds)] if kinds else []
    return DiffReport(
        a=shown_place(place(a)),
        b=shown_place(place(b)),
        only_a=tuple(map(display_path, sorted(left.keys() - right.keys()))),
        only_b=tuple(map(display_path, sorted(right.keys() - left.keys()))),
        changed=tuple(changed),
        same=same,
    )


def dedupe(
    archive: str | Place,
    near: int | None = None,
    run: RunOptions | None = None,
    progress: Watch | None = None,
    codecs: Codecs | None = None,
) -> DedupeReport:
    """Files that are in an archive under several paths: the same file where it is stored exactly or as it is, and the
    same payload where it was coded with loss. With `near`, pictures whose hashes (`images.dhash`) differ in at most so
    many bits, too, or that are joined by others that do; then rows are decoded, in process or on Ray.

    Changes nothing. Raises ArchiveError for damage, and UsageError for a number of bits that finds nothing or all.
    """
    if near is not None and not 0 <= near <= MOST_BITS:
        raise UsageError(f"near must be from 0 to {MOST_BITS} bits, not {near}")
    with ArchiveReader.open(place(archive)) as opened:
        rows = [(path, facts.label, facts.digest) for path, facts in _rows(opened)]
        hashes: dict[int, int] = {}
        if near is not None:
            starts = [0, *accumulate(opened.info.shards)]
            hashed = hash_archive(opened, run or RunOptions(), Clock(progress), codecs or Codecs())
            hashes = {starts[shard] + row: one for (shard, row), one in hashed.items()}
        found: dict[bytes, list[int]] = defaultdict(list)
        for at, (_, _, digest) in enumerate(rows):
            if at not in hashes:
                found[digest].append(at)
        places = [some for some in found.values() if len(some) > 1]
        places += _near(hashes, near) if near is not None else []
        groups = [_group_of(sorted(rows[at][:2] for at in some)) for some in places]
        groups.sort(key=lambda group: (not group.disagrees, -len(group.paths), group.paths))
        return DedupeReport(shown_place(opened.path), opened.row_count, tuple(groups), near)


def _near(hashes: Mapping[int, int], most_bits: int) -> list[list[int]]:
    """Groups of rows, of hashes by row."""
    import numpy as np

    rows = list(hashes)
    return [[rows[at] for at in some] for some in near_groups(np.array([*hashes.values()], np.uint64), most_bits)]


def _group_of(rows: Sequence[tuple[bytes, str | None]]) -> DuplicateGroup:
    return DuplicateGroup(tuple(display_path(path) for path, _ in rows), tuple(label for _, label in rows))


def _changes(a: RowFacts, b: RowFacts, comparable: frozenset[str]) -> tuple[str, ...]:
    coded_alike = a.quality[:2] == b.quality[:2] and a.quality[0] in comparable
    found = {
        "content": a.source != b.source or (coded_alike and a.digest != b.digest),
        "quality": a.quality != b.quality,
        "label": a.label != b.label,
    }
    return tuple(kind for kind in CHANGE_KINDS if found[kind])


def _facts(opened: ArchiveReader) -> Mapping[bytes, RowFacts]:
    return dict(_rows(opened))


def _rows(opened: ArchiveReader) -> Iterator[tuple[bytes, RowFacts]]:
    """Raises ArchiveError, naming what is damaged."""
    for shard in opened.shards():
        columns = opened.read_columns(shard, (*_SOURCE, *_QUALITY, *_PAYLOAD, "grey", "label"))
        for row, path in enumerate(opened.paths(shard)):
            one = {name: values[row] for name, values in columns.items()}
            whole = path if path is not None else opened.sound_rows(shard, [row])[0].path
            source, quality = (tuple(one[name] for name in names) for names in (_SOURCE, _QUALITY))
            yield whole, RowFacts(source, quality, one["label"], _digest(one))


def _digest(one: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in ("codec", "quality", "width", "height", "grey", *_PAYLOAD):
        value = one[name]
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
