"""What holds for a whole archive, and what stands in the place of a row that is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
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
    labelled: bool = False
    """Whether there is a column of labels."""


@dataclass(frozen=True)
class Damage:
    """A row that cannot be had back as it was written."""

    shard: int
    row: int
    """Counted from 0 in the shard."""
    path: bytes | None
    """None where the path is lost as well."""
    reason: str

    def __str__(self) -> str:
        name = "" if self.path is None else f" ({self.path.decode('utf-8', errors='backslashreplace')})"
        return f"shard {self.shard}, row {self.row}{name}: {self.reason}"
