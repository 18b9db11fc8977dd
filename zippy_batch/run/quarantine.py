"""Retries units whose worker died, and finds a file that kills workers: a poison file, which is then kept raw.

    death 1       the shard is tried again as it is: mostly a machine was at fault
    death 2       it is tried again one file at a time, and a journal notes each step before it is taken
    death 3, 4    both workers died at the same file: it is a poison file, and kept raw from now on
    5, 6, ...     the next poison file, likewise; WorkerError after MAX_POISON_FILES, or where the journal names no file

The neighbours of a poison file get the same bytes whether or not it kills a worker. Their floats depend on the shape of
their batch and on nothing else in it, and an empty picture of the same size takes the poison file's place. Batches are
then cut and shaped as in a run that survives it. Where the worker dies in decoding, the size is that of the header; a
file without a readable header is in no batch in any run. Files of the exact codec do not depend on their batch.

A death that only happens sometimes therefore costs its own file a raw row, and other files nothing, with two
exceptions. Whether a poison file that cannot be decoded and is no JPEG would have been grey is not known. A choice
between lossy and exact may hang on how many files of a batch share one JPEG header.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from zippy_batch.archives.writer import part_name
from zippy_batch.errors import WorkerError
from zippy_batch.paths import display_path
from zippy_batch.run.plan import Shard
from zippy_batch.stores.object_path import ObjectPath, Place, put_bytes

MAX_ATTEMPTS = 3
"""Times that a unit is tried on workers that die, where no single file can be at fault."""
DEATHS_BEFORE_JOURNAL = 2
MAX_POISON_FILES = 3
"""Most in one shard. More are a fault of the machine or of this program, and no property of the files."""
MAX_DEATHS = DEATHS_BEFORE_JOURNAL + 2 * MAX_POISON_FILES

DECODING, CODING = "decoding", "encoding"
_RECORD_BYTES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JournalEntry:
    doing: str
    """DECODING or CODING."""
    place: int
    """Row in the shard."""

    @property
    def reason(self) -> str:
        """Fixed words, which reports count."""
        return f"the worker crashed while {self.doing} it"


def read_journal(path: Place) -> JournalEntry | None:
    """The step that a worker was at when it died; None for none, or where it left no journal."""
    try:
        doing, place = path.read_bytes()[:_RECORD_BYTES].decode().split()
        return JournalEntry(doing, int(place))
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True)
class QuarantinedShard:
    """A shard that has killed workers, and is now processed with a journal."""

    shard: Shard
    journal: Place
    named: JournalEntry | None = None
    """What the journal of the last worker that died names."""
    poison: Mapping[int, JournalEntry] = field(default_factory=dict)
    """Row -> what workers died doing to it. It is kept raw."""

    @property
    def index(self) -> int:
        return self.shard.index


class StepJournal:
    """What a worker knows and tells of such a shard. For any other it has no journal, and threads may share it."""

    def __init__(
        self, journal: Callable[[bytes], object] | None = None, poison: Mapping[int, JournalEntry] | None = None
    ) -> None:
        self._journal, self.poison = journal, poison or {}

    @property
    def careful(self) -> bool:
        return self._journal is not None

    @contextmanager
    def at(self, doing: str, place: int) -> Iterator[None]:
        """Says what is about to be done, for whoever finds this worker dead. One step at a time: one thread."""
        self._note(f"{doing} {place}")
        yield
        self._note("")

    def _note(self, text: str) -> None:
        if self._journal is not None:
            self._journal(text.ljust(_RECORD_BYTES).encode())


@contextmanager
def open_journal(unit: Shard | QuarantinedShard) -> Iterator[StepJournal]:
    """The journal of a shard in quarantine; for any other one that notes nothing."""
    if isinstance(unit, Shard):
        yield StepJournal()
        return
    journal = unit.journal
    if isinstance(journal, ObjectPath):
        yield StepJournal(lambda record: put_bytes(record, journal), unit.poison)
        return
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        yield StepJournal(lambda record: os.pwrite(descriptor, record, 0), unit.poison)
    finally:
        os.close(descriptor)


Unit = TypeVar("Unit")


def retry(unit: Unit, deaths: int, reason: str) -> Unit:
    """Raises WorkerError after MAX_ATTEMPTS."""
    if deaths >= MAX_ATTEMPTS:
        raise _given_up(unit, deaths, reason)
    return unit


def retry_with_journal(
    unit: Shard | QuarantinedShard, deaths: int, reason: str, parts: Place
) -> Shard | QuarantinedShard:
    """The shard as the next worker is to take it, by the table above; journals go to the directory `parts`.

    Raises WorkerError where a further attempt would learn nothing.
    """
    if deaths < DEATHS_BEFORE_JOURNAL:
        return unit
    shard = unit if isinstance(unit, Shard) else unit.shard
    careful = QuarantinedShard(shard, parts / f"{part_name(shard.index)}.journal-{uuid.uuid4().hex}")
    if isinstance(unit, Shard):
        return careful
    named = read_journal(unit.journal)
    if named is None or deaths > MAX_DEATHS:
        raise _given_up(unit, deaths, reason if named is None else f"{reason}, at {_path(shard, named)}")
    if named != unit.named:
        return replace(careful, named=named, poison=unit.poison)
    _log.warning("%s: %s, twice; it is kept as it is, and the others go on", _path(shard, named), named.reason)
    return replace(careful, poison={**unit.poison, named.place: named})


def _path(shard: Shard, step: JournalEntry) -> str:
    return display_path(shard.files[step.place].path)


def _given_up(unit: Any, deaths: int, reason: str) -> WorkerError:
    return WorkerError(
        f"shard {unit.index}: the worker crashed {deaths} times ({reason}); what is committed stays, and the same "
        f"command goes on from there. If memory ran out, use a smaller --batch-size or fewer --workers"
    )
