"""merge and select: archives -> an archive, rows copied as they are."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.errors import ArchiveError, UsageError
from zippy_batch.paths import display_path, encoded_path
from zippy_batch.run.copy_rows import (
    CopyPlan,
    CopyReport,
    chosen_pieces,
    copy_archive,
    plan_copy,
    refuse_outputs,
    shown_place,
)
from zippy_batch.run.restore_plan import chosen_rows
from zippy_batch.stores.object_path import Place, place

SPLIT_BY = ("path", "label")
_MOST_PARTS = 1000


@dataclass(frozen=True)
class Split:
    """How rows are spread over several archives: by a hash, so that a row stays where it is when others come."""

    shares: Mapping[str, int]
    """Name -> share of the whole."""
    by: str = "path"
    """One of SPLIT_BY: rows of one label stay together where it is the label."""

    @classmethod
    def of(cls, shares: int | str | Mapping[str, int], by: str = "path") -> Split:
        """Make it of a number of archives, of shares by name, or of a text of either. Raises UsageError."""
        if isinstance(shares, str):
            return cls.parse(shares, by)
        if by not in SPLIT_BY:
            raise UsageError(f"a split is by one of {', '.join(SPLIT_BY)}, not by {by!r}")
        named = {str(i): 1 for i in range(shares)} if isinstance(shares, int) else dict(shares)
        is_sound = all(re.fullmatch(r"[A-Za-z0-9_-]+", name) and share > 0 for name, share in named.items())
        if not 2 <= len(named) <= _MOST_PARTS or not is_sound:
            raise UsageError(
                f"cannot split by {shares}: expected a number of parts from 2 to {_MOST_PARTS}, or shares by name such "
                f"as train=90,validation=10"
            )
        return cls(named, by)

    @classmethod
    def parse(cls, text: str, by: str = "path") -> Split:
        """Make it of "4", or "train=90,validation=10". Raises UsageError."""
        if re.fullmatch(r"[0-9]{1,6}", text):
            return cls.of(int(text), by)
        pairs = [one.partition("=") for one in text.split(",")]
        return cls.of({name: int(share) if re.fullmatch(r"[0-9]{1,6}", share) else 0 for name, _, share in pairs}, by)

    def name_of(self, path: bytes, label: str | None) -> str:
        """Name of the archive that a row goes to."""
        key = path if self.by == "path" or label is None else b"\0" + label.encode()
        at = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") * sum(self.shares.values()) >> 64
        for name, share in self.shares.items():
            at -= share
            if at < 0:
                return name
        raise AssertionError("shares add up")


def merge(
    archives: Sequence[str | Place], output: str | Place, prefix: bool = False, overwrite: bool = False
) -> CopyReport:
    """Make one archive of the rows of several, whose payloads stay as they are.

    Rows of a path that two archives have are refused, unless `prefix` puts the name of its archive and a slash before
    each path. Killed or interrupted, the same call goes on. Raises UsageError before anything is written, ModelError
    for archives that need two models of one codec, and DamagedRow for a row that is not what was written.
    """
    places, output, started = [place(one) for one in archives], place(output), time.monotonic()
    if not places:
        raise UsageError("merge takes one archive or more")
    refuse_outputs(places, output, overwrite)
    folders = _folders(places) if prefix else [b""] * len(places)
    with _opened(places) as sources:
        pieces = [piece for i, source in enumerate(sources) for piece in chosen_pieces(source, i, None)]
        plan = plan_copy(sources, folders, pieces)
        _refuse_nothing(plan, "the archives have no rows")
        copy_archive(plan, output, overwrite)
    return _report(plan, output, started)


@dataclass(frozen=True)
class Wish:
    """A choice of rows: those that fulfil a condition and match any of the globs."""

    where: str | None = None
    select: tuple[str, ...] = ()


def globs_of(select: str | Sequence[str]) -> tuple[str, ...]:
    """One glob or several."""
    return (select,) if isinstance(select, str) else tuple(select)


def select(
    archive: str | Place,
    output: str | Place,
    wish: Wish | None = None,
    split: Split | None = None,
    overwrite: bool = False,
) -> list[CopyReport]:
    """An archive of the rows of another that are wished for, or with `split` several of them, named after `output`.

    Raises what `merge` raises, and UsageError where no row is chosen.
    """
    origin, output, started = place(archive), place(output), time.monotonic()
    wish = wish or Wish()
    outputs = {name: output if split is None else _named(output, name) for name in (split.shares if split else [""])}
    for one in outputs.values():
        refuse_outputs([origin], one, overwrite)
    reports = []
    with _opened([origin]) as sources:
        wanted = chosen_rows(sources[0], wish.select, wish.where)
        divided = {"": wanted} if split is None else _divide(sources[0], wanted, split)
        plans = {name: plan_copy(sources, [b""], [*chosen_pieces(sources[0], 0, divided[name])]) for name in outputs}
        for name, plan in plans.items():
            _refuse_nothing(plan, f"no row of {origin} is chosen{f' for {outputs[name]}' if split else ''}")
        for name, plan in plans.items():
            copy_archive(plan, outputs[name], overwrite)
            reports.append(_report(plan, outputs[name], started))
    return reports


def _divide(
    source: ArchiveReader, wanted: Mapping[int, Sequence[int]] | None, split: Split
) -> dict[str, Mapping[int, Sequence[int]] | None]:
    found: dict[str, dict[int, list[int]]] = {name: {} for name in split.shares}
    for shard in source.shards():
        paths = source.paths(shard)
        labels = source.read_columns(shard, ("label",))["label"]
        for row in range(len(paths)) if wanted is None else wanted.get(shard, ()):
            path = paths[row]
            if path is None:
                raise ArchiveError(f"{source.path}: the path of row {row} of shard {shard} is lost")
            found[split.name_of(path, labels[row])].setdefault(shard, []).append(row)
    return dict(found)


@contextmanager
def _opened(places: Sequence[Place]) -> Iterator[list[ArchiveReader]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ArchiveReader.open(one)) for one in places]


def _refuse_nothing(plan: CopyPlan, why: str) -> None:
    if not plan.shards:
        raise UsageError(f"{why}; nothing was written")


def _folders(places: Sequence[Place]) -> list[bytes]:
    """Names of archives, as folders."""
    names = [encoded_path(one.absolute().name.removesuffix(".parquet")) for one in places]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--prefix: two of the archives are called {display_path(twice[0])}; rename one of them")
    return [name + b"/" for name in names]


def _named(output: Place, name: str) -> Place:
    suffix = output.suffix if output.suffix == ".parquet" else ""
    return output.parent / f"{output.name.removesuffix(suffix)}-{name}{suffix}"


def _report(plan: CopyPlan, output: Place, started: float) -> CopyReport:
    with ArchiveReader.open(output) as made:
        return CopyReport(
            path=shown_place(output),
            sources=tuple(shown_place(source.path) for source in plan.sources),
            rows=made.row_count,
            shards=len(plan.shards),
            verbatim=sum(map(plan.is_verbatim, plan.shards)),
            archive_bytes=made.size_bytes,
            seconds=time.monotonic() - started,
        )
