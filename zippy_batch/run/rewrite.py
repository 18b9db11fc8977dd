"""An archive that is replaced by its next state: rows left out of it, shards added to it.

    recover -> open, plan -> staging -> parts kept, rewritten and new -> published over the old

What stands at the name of the archive is the old state or the new one: a run that is killed while it publishes is
completed by the next. Of a directory on this machine, parts that stay are linked and not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import MANIFEST_NAME, model_name
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.writer import PartFacts, part_name, sha256_of
from zippy_batch.errors import UsageError
from zippy_batch.run.copy_rows import CopyPlan, NewShard, Piece, copy_shards, info_of, state_of, taken_over
from zippy_batch.run.receipt import PendingReceipt
from zippy_batch.run.staging import Staging, committing, open_staging
from zippy_batch.run.staging_local import LocalStaging, recovering, staging_path
from zippy_batch.run.staging_plan import Describe
from zippy_batch.stores.object_path import ObjectPath, Place

FileFacts = dict[str, dict[str, Any]]
"""Bytes and SHA-256 of an archive's files, by name."""


def recover(archive: Place) -> None:
    """Complete what a killed run was about to put in the archive's place, and name the receipt that waits for that.
    Raises UsageError while a run works there."""
    if isinstance(archive, ObjectPath):
        if archive.is_dir():
            raise UsageError(
                f"{archive} is a directory in an object store, where a name cannot be given to all its parts at once; "
                f"write its next state beside it, with select, merge or archive"
            )
    elif staging_path(archive).exists():
        with recovering(archive):
            receipt = PendingReceipt(staging_path(archive))
            if receipt.path.exists():
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


def keep_shards(plan: CopyPlan, staging: Staging) -> dict[int, PartFacts]:
    """Bring the shards of the plan to the staging, and tell what is known of them without reading them."""
    source, known = plan.sources[0], dict[int, PartFacts]()
    done = taken_over(plan, staging)
    for number, shard in enumerate(plan.shards):
        if isinstance(staging, LocalStaging) and plan.is_verbatim(shard) and source.path.is_dir():
            known[number] = replace(source.part_facts(shard[0].shard), name=part_name(number))
            if number not in done:
                _link(source.path / part_name(shard[0].shard), staging.part(number))
    copy_shards(plan, staging, [i for i in range(len(plan.shards)) if i not in known and i not in done])
    return known


def _link(part: Place, new: Path) -> None:
    assert isinstance(part, Path)
    try:
        os.link(part, new)
    except OSError:
        # a file system without links
        with committing(new) as whole:
            shutil.copyfile(part, whole)


def assemble(staging: Staging, plan: CopyPlan, known: Mapping[int, PartFacts]) -> Describe:
    """Make the next state, where that is done before it is published."""

    def describe(used: Any) -> Any:
        return info_of(plan.info, used)

    if isinstance(staging, LocalStaging) and staging.assembled() is None:
        staging.assemble(len(plan.info.shards), describe, known)
    return describe


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
