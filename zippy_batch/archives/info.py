"""What holds for a whole archive, and what stands in the place of a row that is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zippy_batch.archives.schema import Row

MANIFEST_NAME = "_manifest.json"
"""Parquet tools that read a directory pass over names that begin so."""


SWAP_FILE = "swap.json"
"""In the staging of a directory in an object store: how it is becoming its next state."""


def staging_name(archive: str) -> str:
    """Name of the directory beside an archive of this name in which its next state grows."""
    return f".{archive}.zippy-staging"


def model_name(codec: str) -> str:
    """Name of a model's file in a directory."""
    return f"_model-{codec}.safetensors"


DAMAGED_NAMES = "damaged-names"
"""Folder for restored files whose own name is lost, or cannot be a file's."""


def damaged_name(shard: int, row: int, source_format: str | None, folder: bytes = DAMAGED_NAMES.encode()) -> bytes:
    """Path of a restored file whose own name is lost: that of its shard and row."""
    suffix = {None: "", "jpeg": ".jpg", "tiff": ".tif"}.get(source_format, f".{source_format}")
    return folder + f"/part-{shard:05d}-row-{row:06d}{suffix}".encode()


@dataclass(frozen=True, repr=False)
class ArchiveInfo:
    """What holds for all rows of an archive."""

    format_version: int
    models: Mapping[str, str]
    """Codec -> SHA-256 (hex) of the model file that its payloads need; only codecs that have rows, once it is written.
    """
    options: Mapping[str, Any]
    """The options the archive was made with; values are JSON's."""
    shards: tuple[int, ...]
    """Rows of each shard."""
    model_files: Mapping[str, bytes] = field(default_factory=dict)
    """Codec -> its model file, where it is not built in."""

    def __repr__(self) -> str:
        models = ", ".join(f"{codec} {model[:12]}" for codec, model in self.models.items()) or "none"
        rows, shards = sum(self.shards), len(self.shards)
        return f"<ArchiveInfo: format {self.format_version}, {rows} files in {shards} shards, models: {models}>"


@dataclass(frozen=True)
class Damage:
    """A row that cannot be had back as it was written."""

    shard: int
    row: int
    """Counted from 0 in the shard."""
    path: bytes | None
    """None where the path is lost as well."""
    reason: str
    rest: Row | None = None
    """What can be brought back all the same: the row, with None for the fields that are lost, and under a
    `damaged_name` where that is its path. All of it where nothing is lost but what could be put right."""
    lost: tuple[str, ...] = ()
    """Columns that the rest goes without."""

    def __str__(self) -> str:
        name = "" if self.path is None else f" ({self.path.decode('utf-8', errors='backslashreplace')})"
        return f"shard {self.shard}, row {self.row}{name}: {self.reason}"
