"""Listing + options -> shards, and shards -> batches: every cut that decides the archive's bytes.

A shard is the unit of work, of commit and of loss; a batch is what goes through the networks at once. Both are cut by
what was found and by the options alone, never by the number of workers or by what an earlier run left behind, because
the last bit of a network's output depends on the shape of its batch.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zippy_batch.config import ArchiveOptions, labels_kind

if TYPE_CHECKING:
    from zippy_batch.sources.directory import Listing, SourceFile

IMAGES_PER_SHARD = 4096
SOURCE_BYTES_PER_SHARD = 256 << 20
PIXELS_PER_BATCH = 5 << 19
"""One 4096 x 4096 picture is more: it is a batch of its own."""
PENDING_PIXELS = 1 << 25
"""Decoded pixels that may wait for their batch to fill, over all grids: 100 MB of RGB."""

PLAN_VERSION = 2
"""Raised when the cuts below change, so that no staging of another version is taken up."""


_NOT_RECORDED = ("model", "exact_model", "strict", "input", "labels", "label_pattern", "leave_out", "exclude_from")
_RECORDED_IF_GIVEN = ("image_column", "name_column", "label_column", "encoding", "include", "exclude")


@dataclass(frozen=True)
class Shard:
    index: int
    files: tuple[SourceFile, ...]

    @property
    def source_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class ArchivePlan:
    """What a run will do; two runs with equal fingerprints write the same bytes on the same kind of machine."""

    listing: Listing
    cuts: tuple[int, ...]
    """Shard i holds files cuts[i] to cuts[i + 1] of the listing."""
    options: ArchiveOptions
    """The shard size and the device are settled in them."""
    model_ids: Mapping[str, str]
    """Codec -> id of its model."""

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def shard(self, index: int) -> Shard:
        return Shard(index, self.listing.files[self.cuts[index] : self.cuts[index + 1]])

    def source_bytes(self, index: int) -> int:
        """Source bytes of one shard."""
        before = self.listing.files.bytes_before
        return before(self.cuts[index + 1]) - before(self.cuts[index])

    @property
    def labelled(self) -> bool:
        return self.listing.files.labelled

    @property
    def recorded_labels(self) -> dict[str, str]:
        """What `recorded` says of where labels come from; no path of a table."""
        return {"labels": labels_kind(self.options.labels, self.options.label_pattern)} if self.labelled else {}

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Files of each shard."""
        return tuple(stop - start for start, stop in pairwise(self.cuts))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hex, of inputs, options, models and version."""
        text = json.dumps([PLAN_VERSION, self.facts, self.rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the fingerprint was taken of, short enough to tell a person what differs from another plan."""
        files = self.listing.files
        return {
            **{name.replace("_", "-"): value for name, value in recorded(self.options).items()},
            **{f"model of the {codec} codec": found for codec, found in sorted(self.model_ids.items())},
            **self.recorded_labels,
            "files": len(files),
            "source bytes": files.size_bytes,
            "names, sizes and times of the files": _files_digest(self.listing),
            "version": _version(),
        }


def source_states(plan: ArchivePlan) -> list[int]:
    """32 bits for each shard that tell whether any of its files, or what they are in, has changed since. Unlike the
    fingerprint they are those of one file system: a copy of the source has others."""
    containers = [container.state for container in plan.listing.containers]
    files = iter(plan.listing.files)
    out = []
    for rows in plan.rows:
        shard = list(islice(files, rows))
        inside = sorted({containers[file.place[0]] for file in shard if file.place})
        out.append(zlib.crc32(array("I", [*(file.state for file in shard), *inside]).tobytes()))
    return out


def plan_archive(listing: Listing, options: ArchiveOptions, model_ids: Mapping[str, str]) -> ArchivePlan:
    """`options.device` is settled by now; a shard size of 0 is settled here."""
    options = replace(options, shard_size=options.shard_size or IMAGES_PER_SHARD)
    files = listing.files
    cuts = cut_shards(len(files), files.bytes_before, options.shard_size, SOURCE_BYTES_PER_SHARD)
    return ArchivePlan(listing, cuts, options, model_ids)


def recorded(options: ArchiveOptions) -> dict[str, Any]:
    """The options that decide an archive's bytes, as it records them.

    Its models have a place of their own, where it does not matter by what path they were found; `strict` decides only
    whether there is an archive, and what is taken of a source shows in what is found there.
    """
    found = {name: value for name, value in asdict(options).items() if name not in _NOT_RECORDED}
    return {name: value for name, value in found.items() if value not in (None, ()) or name not in _RECORDED_IF_GIVEN}


def cut_shards(count: int, bytes_before: Callable[[int], int], most_images: int, most_bytes: int) -> tuple[int, ...]:
    """Boundaries of balanced shards, from 0 to the number of files; no files make one empty shard.

    `bytes_before` tells what the first so many files have together. A shard exceeds `most_bytes` only where a single
    file does.
    """
    cuts = [0]
    todo = [(0, count)]
    while todo:
        start, stop = todo.pop()
        pieces = _pieces(bytes_before, start, stop, most_images, most_bytes)
        if len(pieces) == 1:
            cuts.append(stop)
        else:
            todo.extend(reversed(pieces))
    return tuple(cuts)


def _pieces(
    bytes_before: Callable[[int], int], start: int, stop: int, most_images: int, most_bytes: int
) -> list[tuple[int, int]]:
    """The range itself if it fits, else two or more even parts of it."""
    begin = bytes_before(start)
    images, size_bytes = stop - start, bytes_before(stop) - begin
    by_images, by_bytes = -(-images // most_images), -(-size_bytes // most_bytes)
    count = max(by_images, by_bytes)
    if images <= 1 or count <= 1:
        return [(start, stop)]
    if by_images >= by_bytes:
        inner = {start + images * i // count for i in range(1, count)}
    else:
        here = range(start, stop)
        inner = {start + bisect_left(here, begin + size_bytes * i // count, key=bytes_before) for i in range(1, count)}
    # every byte cut lies in the last file: it is the big one
    inside = sorted(cut for cut in inner if start < cut < stop) or [stop - 1]
    edges = [start, *inside, stop]
    return list(pairwise(edges))


Item = TypeVar("Item")
Key = tuple[str, int, int]
"""Codec, and what else the items of a batch must have in common: the latent grid, or zeros."""


@dataclass
class _Pending(Generic[Item]):
    items: list[Item]
    samples: int = 0


@dataclass(frozen=True)
class BatchLimit:
    """What fits into one batch; a single picture may be larger."""

    images: int
    samples: int = PIXELS_PER_BATCH
    """Pixels of pictures, coefficients of JPEG files."""


def cut_batches(
    items: Iterable[Item],
    key_of: Callable[[Item], Key],
    samples_of: Callable[[Item], int],
    limit_of: Callable[[Key], BatchLimit],
    most_pending: int = PENDING_PIXELS,
) -> Iterator[list[Item]]:
    """Batches of items with equal keys, each in the order of `items`, with at most one picture above its limit.

    Takes no more items than it must, and holds at most `most_pending` samples plus one picture: a collection of
    thousands of different sizes is coded in smaller batches rather than held in memory.
    """
    waiting: dict[Key, _Pending[Item]] = {}
    pending = 0
    for item in items:
        key, samples = key_of(item), samples_of(item)
        limit = limit_of(key)
        held = waiting.get(key)
        if held and held.samples + samples > limit.samples:
            pending -= waiting.pop(key).samples
            yield held.items
        held = waiting.setdefault(key, _Pending([]))
        held.items.append(item)
        held.samples += samples
        pending += samples
        if len(held.items) == limit.images:
            pending -= waiting.pop(key).samples
            yield held.items
        while pending > most_pending:
            largest = max(waiting, key=lambda key: (waiting[key].samples, key))
            held = waiting.pop(largest)
            pending -= held.samples
            yield held.items
    for held in waiting.values():
        yield held.items


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of them at even distances, or all where there are not more or count is 0."""
    taken = min(count or len(items), len(items))
    return [items[i * len(items) // taken] for i in range(taken)]


def _files_digest(listing: Listing) -> str:
    """Digest of what a copy of the source has in common with it: no path above the source is in it."""
    digest = hashlib.sha256()
    for container in listing.containers:
        digest.update(struct.pack("<Qq", container.size_bytes, container.mtime_s))
    for file in listing.files:
        digest.update(struct.pack("<IQq", len(file.path), file.size_bytes, file.mtime_s) + file.path)
        if file.place or file.label is not None:
            label = b"" if file.label is None else b"=" + file.label.encode()
            digest.update(struct.pack(f"<I{len(file.place)}qI", len(file.place), *file.place, len(label)) + label)
    return digest.hexdigest()


def _version() -> str:
    try:
        return metadata.version("zippy-batch")
    except metadata.PackageNotFoundError:
        return "not installed"
