"""An archive that is replaced by its next state: rows left out of it, shards added to it.

    recover -> open, plan -> staging -> parts kept, rewritten and new -> published over the old

What stands at the name of the archive is the old state or the new one: a run that is killed while it publishes is
completed by the next. Of a directory on this machine, parts that stay are linked and not read; of one in an object
store they are not touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, model_name
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.writer import PartFacts, part_name, sha256_of
from zippy_batch.errors import UsageError
from zippy_batch.run.copy_rows import CopyPlan, NewShard, Piece, copy_shards, info_of, state_of, taken_over
from zippy_batch.run.receipt import PendingReceipt
from zippy_batch.run.staging import Staging, committing, open_staging
from zippy_batch.run.staging_local import LocalStaging, recovering, staging_path
from zippy_batch.run.staging_object import ObjectStaging, object_staging_path, recovering_object
from zippy_batch.run.swap_object import FileFacts
from zippy_batch.stores.object_path import ObjectPath, Place, copy, place, sizes_in


def rewritable(archive: str | Place) -> Place:
    """The archive of this name, behind a link to it: a link that became an archive would leave the old one as it is."""
    found = place(archive)
    return found.resolve() if isinstance(found, Path) and found.is_symlink() and found.exists() else found


def recover(archive: Place) -> None:
    """Complete what a killed run was about to put in the archive's place, and name the receipt that waits for that.
    Raises UsageError while a run works there."""
    if isinstance(archive, ObjectPath):
        root: Place = object_staging_path(archive)
        finishing = recovering_object(archive) if sizes_in(root) else None
    else:
        root = staging_path(archive)
        finishing = recovering(archive) if root.exists() else None
    if finishing is not None:
        with finishing:
            receipt = PendingReceipt(root)
            if receipt.is_there():
                receipt.settle(files_of_archive(archive) if archive.exists() else {})


def left_after(source: ArchiveReader, gone: Mapping[int, set[int]]) -> tuple[NewShard, ...]:
    """Shards of an archive without some rows; those that have nothing left are left out."""
    shards = []
    for shard in source.shards():
        count, lost = source.info.shards[shard], gone.get(shard, set())
        if len(lost) < count:
            rows = tuple(row for row in range(count) if row not in lost) if lost else None
            shards.append((Piece(0, shard, rows),))
    return tuple(shards)


@contextmanager
def open_rewriting(plan: CopyPlan, facts: Mapping[str, Any]) -> Iterator[Staging]:
    """The staging of an archive, `plan.sources[0]`, that is to be replaced. Raises UsageError where another run works
    there, or has changed the archive since it was opened."""
    source = plan.sources[0]
    facts = {**plan.facts, **facts}
    fingerprint = hashlib.sha256(json.dumps([facts, plan.info.shards]).encode()).hexdigest()
    with open_staging(source.path, fingerprint, facts, overwrite=True) as staging:
        with ArchiveReader.open(source.path) as now:
            if state_of(now) != state_of(source):
                raise UsageError(f"{source.path} was changed by another run meanwhile; give the same command again")
        yield staging


@dataclass(frozen=True)
class Kept:
    """Shards of the archive that its next state has as they are."""

    known: Mapping[int, PartFacts]
    """What is known of them without reading them, by their number there."""
    staying: frozenset[int] = frozenset()
    """Those that are not in the staging, because they stay in their place."""


def keep_shards(plan: CopyPlan, staging: Staging) -> Kept:
    """Bring the shards of the plan to the staging, but for those that stay."""
    source, known, staying = plan.sources[0], dict[int, PartFacts](), set[int]()
    done = taken_over(plan, staging)
    for number, shard in enumerate(plan.shards):
        if plan.is_verbatim(shard) and source.path.is_dir():
            old = shard[0].shard
            known[number] = replace(source.part_facts(old), name=part_name(number))
            if isinstance(source.path, ObjectPath) and old == number:
                staying.add(number)
            elif number not in done:
                _link(source.path / part_name(old), staging.part(number))
    copy_shards(plan, staging, [i for i in range(len(plan.shards)) if i not in known and i not in done])
    return Kept(known, frozenset(staying))


def _link(part: Place, new: Place) -> None:
    if isinstance(part, ObjectPath) and isinstance(new, ObjectPath):
        copy(part, new)
        return
    assert isinstance(part, Path)
    assert isinstance(new, Path)
    try:
        os.link(part, new)
    except OSError:
        # a file system without links
        with committing(new) as whole:
            shutil.copyfile(part, whole)


def publish(
    staging: Staging, plan: CopyPlan, kept: Kept, receipt: Callable[[FileFacts], PendingReceipt] | None = None
) -> None:
    """Put the next state in the place of the archive. `receipt` is given its files, and what it makes of them is there
    before the archive changes."""

    def describe(used: Iterable[str]) -> ArchiveInfo:
        return info_of(plan.info, used)

    shards = len(plan.info.shards)
    if isinstance(staging, ObjectStaging):
        swap, files = staging.assemble(shards, describe, kept.known, kept.staying)
        pending = receipt(files) if receipt else None
        staging.swap(swap)
    else:
        assert isinstance(staging, LocalStaging)
        if staging.assembled() is None:
            staging.assemble(shards, describe, kept.known)
        files = files_of_archive(staging.finished) if receipt else {}
        if receipt and staging.finished.is_file():
            files = {staging.output.name: files[staging.finished.name]}
        pending = receipt(files) if receipt else None
        staging.publish(shards, describe)
    if pending is not None:
        pending.settle(files)


def files_of_archive(path: Place) -> FileFacts:
    """Every file of an archive, hashed."""
    if not path.is_dir():
        return {path.name: _file_facts(path)}
    with ArchiveReader.open(path) as opened:
        names = [MANIFEST_NAME, *(model_name(codec) for codec in opened.info.model_files)]
        names += [part_name(shard) for shard in opened.shards()]
    return {name: _file_facts(path / name) for name in names}


def _file_facts(path: Place) -> dict[str, Any]:
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
    return {"bytes": size_bytes, "sha256": sha256_of(path)}
