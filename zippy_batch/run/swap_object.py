"""An archive in an object store that becomes its next state, or another archive: what a rename does on a disk.

    next state, whole in the staging -> swap.json says how -> steps that may be taken again -> swap.json is gone

A single object is replaced by one copy within the store. Of a directory, only parts that are new or other ones are
touched, in this order:

    parts whose names are not taken   -> their place; the manifest does not know them yet
    manifest                          -> the next one: from here on a reader finds the next state
    parts whose names were taken      -> their place; the manifest says where they are meanwhile (`Moving`)
    what is left of the old state     -> deleted, and the manifest no longer says that anything moves

Whoever is killed in between, a reader finds the old state or the next one, and `finish_swap` of the next run takes the
steps that are left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zippy_batch.archives.description import Moving
from zippy_batch.archives.info import MANIFEST_NAME, SWAP_FILE, ArchiveInfo, model_name
from zippy_batch.archives.writer import PartFacts, manifest_text
from zippy_batch.errors import StorageError
from zippy_batch.run.staging_plan import shard_of
from zippy_batch.stores.lease import Lease
from zippy_batch.stores.object_path import ObjectPath, at_once, copy, delete, put_bytes, sizes_in

NEXT_FILE, MOVING_FILE = "next-manifest.json", "moving-manifest.json"
FINISHED = "finished.parquet"
"""In the staging: the next state of a single object."""

FileFacts = dict[str, dict[str, Any]]
"""Bytes and SHA-256 of an archive's files, by name."""


@dataclass(frozen=True)
class Swap:
    """What is to be done, as swap.json has it."""

    manifests: tuple[str, ...] = ()
    """SHA-256 of the manifest now, while parts move, and in the end; of a directory alone."""
    folder: str = ""
    """Where in the staging the parts are."""
    fresh: Mapping[str, int] | None = None
    """Bytes of the parts and models whose names are not taken."""
    taken: Mapping[str, int] | None = None
    """Bytes of the parts and models that take the place of others."""
    left_over: tuple[str, ...] = ()
    """What the next state does not have."""
    replaced: tuple[int, int] = (0, 0)
    """Bytes and time of the object that is replaced; of a single object alone."""

    def write(self, root: ObjectPath) -> None:
        put_bytes(json.dumps(asdict(self)).encode(), root / SWAP_FILE)

    @classmethod
    def read(cls, root: ObjectPath) -> Swap | None:
        """None where nothing is to be done; half a file is nothing."""
        try:
            found = json.loads((root / SWAP_FILE).read_bytes())
            lists = {name: tuple(found[name]) for name in ("manifests", "left_over", "replaced")}
            return cls(**{**found, **lists})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def plan_directory(
    root: ObjectPath, output: ObjectPath, folder: str, info: ArchiveInfo, parts: tuple[list[PartFacts], set[int]]
) -> tuple[Swap, FileFacts]:
    """Put the manifests of the next state in the staging, and its models. `parts` are what is known of all parts, and
    the numbers of those that stay as they are."""
    facts, staying = parts
    there = sizes_in(output)
    now = (output / MANIFEST_NAME).read_bytes()
    moved = {one.name: one.size_bytes for shard, one in enumerate(facts) if shard not in staying}
    models = {model_name(codec): data for codec, data in info.model_files.items()}
    # where no part stays, nobody has looked at the models that are there
    known = _models_of(now) if staying else {}
    kept_models = {model_name(codec) for codec, model in known.items() if info.models.get(codec) == model}
    new_models = {name: len(data) for name, data in models.items() if name not in kept_models & set(there)}
    moved |= new_models
    taken = {name: size for name, size in moved.items() if name in there}
    names = {MANIFEST_NAME, *models, *(one.name for one in facts)}
    left_over = tuple(sorted(name for name in there if name not in names))
    final = manifest_text(info, facts)
    moving = Moving(folder, frozenset(shard for name in taken if (shard := shard_of(name)) is not None))
    between = manifest_text(info, facts, moving) if taken or left_over else final
    put_bytes(final, root / NEXT_FILE)
    put_bytes(between, root / MOVING_FILE)
    for name in new_models:
        put_bytes(models[name], root / folder / name)
    fresh = {name: size for name, size in moved.items() if name not in taken}
    swap = Swap((_sha256(now), _sha256(between), _sha256(final)), folder, fresh, taken, left_over)
    files: FileFacts = {one.name: {"bytes": one.size_bytes, "sha256": one.sha256} for one in facts}
    files |= {name: facts_of(data) for name, data in {**models, MANIFEST_NAME: final}.items()}
    return swap, files


def _models_of(manifest: bytes) -> Mapping[str, str]:
    """SHA-256 of each codec's model; none where the manifest is damaged."""
    try:
        found = json.loads(manifest)["models"]
        return found if isinstance(found, dict) else {}
    except (ValueError, TypeError, KeyError):
        return {}


def facts_of(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": _sha256(data)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def finish_swap(root: ObjectPath, output: ObjectPath, lease: Lease) -> bool | None:
    """Take the steps that are left. None where there are none; False, and nothing was done, where the archive is
    neither the one that is replaced nor its next state."""
    swap = Swap.read(root)
    if swap is None:
        return None
    lease.require()
    is_done = _swap_directory(swap, root, output, lease) if swap.manifests else _swap_object(swap, root, output)
    # whatever is in the staging is not needed any more
    put_bytes(b"", root / "published")
    delete(root / SWAP_FILE)
    return is_done


def state_of_object(path: ObjectPath) -> tuple[int, int]:
    """What tells an object from the one that takes its place."""
    found = path.info()
    return found.size or 0, found.mtime_ns or 0


def _swap_object(swap: Swap, root: ObjectPath, output: ObjectPath) -> bool:
    if state_of_object(output) == swap.replaced:
        copy(root / FINISHED, output)
        return True
    # its next state is an object of another time
    return output.info().size == (root / FINISHED).info().size


def _swap_directory(swap: Swap, root: ObjectPath, output: ObjectPath, lease: Lease) -> bool:
    now = _manifest_sha256(output)
    old, between, final = swap.manifests
    if now not in swap.manifests:
        return False
    if now == old != final:
        _place(swap.fresh or {}, root / swap.folder, output)
        lease.require()
        if _manifest_sha256(output) != old:
            return False
        copy(root / MOVING_FILE, output / MANIFEST_NAME)
    files = dict(swap.taken or {})
    if old == final:
        # the same archive again, whose files may have been damaged
        files |= swap.fresh or {}
    if old == final or now != final != between:
        _place(files, root / swap.folder, output)
        at_once(lambda name: delete(output / name), swap.left_over)
        lease.require()
        copy(root / NEXT_FILE, output / MANIFEST_NAME)
    if _manifest_sha256(output) != final:
        raise StorageError(f"{output / MANIFEST_NAME} is not what was copied there; run the same command again")
    return True


def _manifest_sha256(output: ObjectPath) -> str:
    try:
        return _sha256((output / MANIFEST_NAME).read_bytes())
    except FileNotFoundError:
        return ""


def _place(files: Mapping[str, int], folder: ObjectPath, output: ObjectPath) -> None:
    if not files:
        return
    at_once(lambda name: copy(folder / name, output / name), list(files))
    there = sizes_in(output)
    if wrong := sorted(name for name, size_bytes in files.items() if there.get(name) != size_bytes):
        raise StorageError(f"{output / wrong[0]} is not what was copied there; run the same command again")
