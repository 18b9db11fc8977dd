"""What says that a cache is whole: a file that is taken away before the cache is built, and written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zippy_batch.stores.atomic_file import replacing


def key_of(*parts: str) -> str:
    """What a cache was built from, in short."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_stamp(stamp: Path, key: str) -> Any:
    """What was stamped on a cache of this key; None where it is of another, is not finished or cannot be read."""
    try:
        held = json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return None
    return held.get("content") if isinstance(held, dict) and held.get("key") == key else None


def write_stamp(stamp: Path, key: str, content: Any) -> None:
    with replacing(stamp) as new:
        new.write_text(json.dumps({"key": key, "content": content}))
