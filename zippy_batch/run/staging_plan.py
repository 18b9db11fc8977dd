"""What both kinds of staging have in common: the plan that they belong to, and the names of what is in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, model_name
from zippy_batch.archives.schema import CODED
from zippy_batch.archives.writer import part_name
from zippy_batch.errors import UsageError
from zippy_batch.paths import display_path, is_named_like_a_file
from zippy_batch.stores.object_path import Place

PLAN_FILE = "plan.json"
STATES_FILE = "source-states.json"
_SHOWN = 5
"""Names that a message has before it says that there are more."""
_PART_NAME = re.compile(r"part-(\d{5,})\.parquet")

Describe = Callable[[Iterable[str]], ArchiveInfo]
"""Makes the description of an archive, given the codecs that have rows in it."""


def shard_of(name: str) -> int | None:
    """The shard whose part has this name."""
    match = _PART_NAME.fullmatch(name)
    return int(match[1]) if match and name == part_name(int(match[1])) else None


def refuse_other_content(output: Place, names: Set[str]) -> None:
    """Raises UsageError for a directory with these names in it that is neither an archive and nothing else, nor empty:
    what replaces it replaces all of it."""
    if not names:
        return
    if MANIFEST_NAME not in names:
        raise UsageError(f"{output} is a directory that is not an archive; --overwrite does not remove it")
    others = sorted(name for name in names if not _archive_file(name))
    if others:
        shown = ", ".join(display_path(os.fsencode(name)) for name in others[:_SHOWN])
        more = ", ..." if len(others) > _SHOWN else ""
        raise UsageError(
            f"{output} holds what is no part of an archive, and is replaced as a whole: {shown}{more}; "
            f"take it out first"
        )


def _archive_file(name: str) -> bool:
    return name in (MANIFEST_NAME, *map(model_name, CODED)) or shard_of(name) is not None


def refuse_other_kind(output: Place) -> None:
    """Raises UsageError for the name of a file of another kind, which would become a directory."""
    if output.suffix != ".parquet" and is_named_like_a_file(output.name):
        raise UsageError(
            f"cannot write {output}: an archive is a .parquet file, or a directory whose name does not end in "
            f"{output.suffix}; choose another name"
        )


def plan_text(fingerprint: str, facts: Mapping[str, Any]) -> str:
    return json.dumps({"fingerprint": fingerprint, "facts": dict(facts)}, indent=1, sort_keys=True)


def parse_plan(text: bytes) -> dict[str, Any]:
    """The plan in a staging; one without a fingerprint where it is damaged."""
    try:
        plan = json.loads(text)
        return {"fingerprint": str(plan["fingerprint"]), "facts": dict(plan["facts"])}
    except (ValueError, KeyError, TypeError):
        return {"fingerprint": "", "facts": {}}


def states_text(states: Sequence[int]) -> str:
    return json.dumps(list(states))


def parse_states(text: bytes) -> list[int]:
    """Empty where it is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def mismatch(root: Place, output: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)] if old else []
    changed = [f"{name}: {_short(old.get(name))} then, {_short(new.get(name))} now" for name in differing]
    return (
        f"{root} holds an unfinished run of other inputs or options for {output} "
        f"({'; '.join(changed) or 'its plan cannot be read'}). Run it again as it was to finish it, "
        f"or discard it with --overwrite (or by deleting that directory)"
    )


def _short(value: Any) -> Any:
    """The first characters of a digest, which tell it from another."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else value
