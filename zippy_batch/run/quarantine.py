"""What becomes of a unit whose worker died, and how a file that kills workers is found and kept raw.

    death 1       the shard again, as it is: mostly a machine was at fault
    death 2       again, but from now on one file at a time, each step noted in a journal before it is taken
    death 3, 4    both workers died at the same file: it is a culprit, and kept raw from now on
    5, 6, ...     the next culprit, likewise; WorkerError after MOST_CULPRITS, or where the journal names no file

A culprit's neighbours have the same bytes whether or not it kills a worker, since their floats depend on the shape of
their batch and on nothing else in it: its place in its batch is taken by an empty picture of its size, so that batches
are cut and shaped as in a run that it lets live. Where it dies in decoding, the size is that of its header, and a file
without a readable header is in no batch in any run. Files of the exact codec do not depend on their batch. So a death
that only happens sometimes costs its own file a raw row, and other files nothing, with two exceptions: whether a
culprit that cannot be decoded and is no JPEG would have been grey is not known, and a choice between lossy and exact
may hang on how many files of a batch share one JPEG header.
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

ATTEMPTS = 3
"""Times that a unit is tried on workers that die, where no single file can be at fault."""
CARELESS_DEATHS = 2
MOST_CULPRITS = 3
"""In one shard. More are a fault of the machine or of this program, and no property of the files."""
MOST_DEATHS = CARELESS_DEATHS + 2 * MOST_CULPRITS

DECODING, CODING = "decoding", "coding"
_RECORD_BYTES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    doing: str
    """DECODING or CODING."""
    place: int
    """Row in the shard."""

    @property
    def reason(self) -> str:
        """Fixed words, which reports count."""
        return f"its worker died {self.doing} it"


def read_journal(path: Place) -> Step | None:
    """The step that a worker was at when it died; None for none, or where it left no journal."""
    try:
        doing, place = path.read_bytes()[:_RECORD_BYTES].decode().split()
        return Step(doing, int(place))
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True)
class CarefulShard:
    """A shard that has killed workers, to be worked off with a journal."""

    shard: Shard
    journal: Place
    named: Step | None = None
    """By the journal of the last worker that died."""
    culprits: Mapping[int, Step] = field(default_factory=dict)
    """By row: what workers died doing to it. It is kept raw."""

    @property
    def index(self) -> int:
        return self.shard.index


class Care:
    """What a worker knows and tells of such a shard. For any other it has no journal, and threads may share it."""

    def __init__(
        self, journal: Callable[[bytes], object] | None = None, culprits: Mapping[int, Step] | None = None
    ) -> None:
        self._journal, self.culprits = journal, culprits or {}

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
def taking_care(unit: CarefulShard) -> Iterator[Care]:
    journal = unit.journal
    if isinstance(journal, ObjectPath):
        yield Care(lambda record: put_bytes(record, journal), unit.culprits)
        return
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        yield Care(lambda record: os.pwrite(descriptor, record, 0), unit.culprits)
    finally:
        os.close(descriptor)


Unit = TypeVar("Unit")


def once_more(unit: Unit, deaths: int, reason: str) -> Unit:
    """Raises WorkerError after ATTEMPTS."""
    if deaths >= ATTEMPTS:
        raise _given_up(unit, deaths, reason)
    return unit


def once_more_with_care(unit: Shard | CarefulShard, deaths: int, reason: str, parts: Place) -> Shard | CarefulShard:
    """The shard as the next worker is to take it, by the table above; journals go to the directory `parts`.

    Raises WorkerError where a further attempt would learn nothing.
    """
    if deaths < CARELESS_DEATHS:
        return unit
    shard = unit if isinstance(unit, Shard) else unit.shard
    careful = CarefulShard(shard, parts / f"{part_name(shard.index)}.journal-{uuid.uuid4().hex}")
    if isinstance(unit, Shard):
        return careful
    named = read_journal(unit.journal)
    if named is None or deaths > MOST_DEATHS:
        raise _given_up(unit, deaths, reason if named is None else f"{reason}, at {_path(shard, named)}")
    if named != unit.named:
        return replace(careful, named=named, culprits=unit.culprits)
    _log.warning("%s: %s, twice; it is kept as it is, and the others go on", _path(shard, named), named.reason)
    return replace(careful, culprits={**unit.culprits, named.place: named})


def _path(shard: Shard, step: Step) -> str:
    return display_path(shard.files[step.place].path)


def _given_up(unit: Any, deaths: int, reason: str) -> WorkerError:
    return WorkerError(
        f"shard {unit.index}: its worker died {deaths} times ({reason}); what is committed stays, and the same command "
        f"goes on from there. If memory ran out, use a smaller --batch-size or fewer --workers"
    )
