"""Where an archive grows until it is published: beside the output, whatever the output is.

    open_staging -> parts committed by workers -> publish -> removed
                 `-> kept for the next run, when it is interrupted

One protocol has two implementations: a directory of this machine, whose renames and locks do the work
(`staging_local`), and the objects of a store that has neither (`staging_object`). Both pass `tests/test_staging.py`.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from zippy_batch.run.staging_local import open_local_staging, refuse_existing, refuse_unsuitable
from zippy_batch.run.staging_object import open_object_staging, refuse_existing_object, refuse_unsuitable_object
from zippy_batch.run.staging_plan import Describe
from zippy_batch.stores.object_path import ObjectPath, Place, put


class Staging(Protocol):
    """Held by one run at a time."""

    @property
    def output(self) -> Place: ...

    @property
    def parts(self) -> Place:
        """The directory that workers commit parts to; its name is the fingerprint of the plan."""
        ...

    def part(self, shard: int) -> Place: ...

    def committed(self) -> set[int]:
        """Indices of the shards that are done."""
        ...

    def discard(self, shard: int) -> None:
        """Have a committed shard done again."""
        ...

    def source_states(self) -> list[int]:
        """What `record_source_states` was given last, here or in an earlier run; empty where nothing was."""
        ...

    def record_source_states(self, states: Sequence[int]) -> None:
        """Note what the parts are made of that are committed from here on, by shard. Whoever notes anything else
        first discards the parts that were made of something else."""
        ...

    def require(self, shard: int) -> None:
        """Note that a worker has committed a part. Raises WorkerError when it is not to be seen from here."""
        ...

    def assembled(self) -> Place | None:
        """The whole archive, still in the staging, if an earlier run came as far as that."""
        ...

    def take_apart(self) -> None:
        """Go back from `assembled` to parts, where it is damaged."""
        ...

    def is_published(self) -> bool:
        """Whether an earlier run put the archive in its place and was killed before it removed the staging."""
        ...

    def publish(self, shards: int, describe: Describe) -> None:
        """Make the archive of the first `shards` parts, and put it in its place. Raises ArchiveError for a part that is
        damaged, and then the output is as it was."""
        ...


@contextmanager
def committing(part: Place) -> Iterator[Path]:
    """A new file of this machine that becomes `part`, of a staging, when it is written. Raises StorageError."""
    if isinstance(part, Path):
        new = part.with_name(f"{part.name}.new-{uuid.uuid4().hex}")
        yield new
        os.replace(new, part)
        return
    with tempfile.TemporaryDirectory(prefix="zippy-") as folder:
        new = Path(folder) / part.name
        yield new
        put(new, part.parent.parent / "attempts", part)


def refuse_output(source: Place, output: Place, overwrite: bool) -> None:
    """Raises UsageError for an output that no archive can be written to, or that lies in the source or around it, and
    OutputExists for one that exists, unless `overwrite` allows to replace it."""
    if isinstance(output, ObjectPath):
        refuse_unsuitable_object(source, output)
        refuse_existing_object(output, overwrite)
    else:
        refuse_unsuitable(source, output)
        refuse_existing(output, overwrite)


def open_staging(
    output: Place, fingerprint: str, facts: Mapping[str, Any], overwrite: bool
) -> AbstractContextManager[Staging]:
    """The staging of `output` for the plan with this fingerprint, new or as an earlier run of it left it.

    Raises UsageError when another run works on this output, and StagingMismatch when the staging is of another plan
    and `overwrite` does not say to discard it. It is kept for the next run when the body raises and any work is in it,
    and removed otherwise.
    """
    if isinstance(output, ObjectPath):
        return open_object_staging(output, fingerprint, facts, overwrite)
    return open_local_staging(output, fingerprint, facts, overwrite)
