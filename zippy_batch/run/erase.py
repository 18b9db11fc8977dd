"""erase: rows that are to be gone from an archive, and a receipt of that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zippy_batch import __version__
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.paths import MAX_NAME_BYTES, display_path, encoded_path
from zippy_batch.run.copy_rows import CopyPlan, common_info, rows_of_shard, shown_place
from zippy_batch.run.receipt import PendingReceipt, Receipt, ReceiptSigner, hashed_paths
from zippy_batch.run.report import count_text, rounded
from zippy_batch.run.restore_plan import chosen_rows
from zippy_batch.run.rewrite import (
    Kept,
    files_of_archive,
    keep_shards,
    left_after,
    open_rewriting,
    publish,
    recover,
    rewritable,
)
from zippy_batch.run.staging_local import refuse_existing
from zippy_batch.run.swap_object import FileFacts
from zippy_batch.stores.atomic_file import UNFINISHED_BYTES
from zippy_batch.stores.object_path import Place

_LISTED = 20


@dataclass(frozen=True)
class Erasure:
    """What says which rows are to go, and what is said of it."""

    where: str | None = None
    paths: tuple[bytes, ...] | None = None
    """Paths of files, instead of a condition."""
    receipt: Path | None = None
    """Where the receipt goes; None for a name beside the archive."""
    sign: Path | None = None
    """PEM file of the Ed25519 key that signs the receipt."""


@dataclass(frozen=True)
class EraseReport:
    path: str
    rows: int
    rows_left: int
    paths: tuple[str, ...]
    """Of the rows that are, or would be, erased."""
    not_found: int
    """Paths asked for that the archive does not have."""
    rewritten: tuple[str, ...]
    """Files that held the rows."""
    receipt: str | None
    """None where nothing was erased."""
    seconds: float

    exit_code = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "archive": self.path,
            "exit_code": self.exit_code,
            "dry_run": self.receipt is None,
            "files_erased": self.rows,
            "files_left": self.rows_left,
            "paths": list(self.paths),
            "paths_not_found": self.not_found,
            "rewritten": list(self.rewritten),
            "receipt": self.receipt,
            "seconds": rounded(self.seconds, 3),
        }

    def lines(self, columns: int | None = None) -> list[str]:
        done = "would be erased from" if self.receipt is None else "erased from"
        out = [f"{count_text(self.rows, 'file')} {done} {self.path}, {self.rows_left} left"]
        if self.receipt is None:
            more = len(self.paths) - _LISTED
            out += [*(f"  {path}" for path in self.paths[:_LISTED]), *([f"  and {more} more"] if more > 0 else [])]
        if self.not_found:
            out.append(f"{count_text(self.not_found, 'path')} of those asked for are not in it")
        return out if self.receipt is None else [*out, f"receipt: {self.receipt}"]


def erase(archive: str | Place, wish: Erasure, dry_run: bool = False) -> EraseReport:
    """Take rows out of an archive for good: what held them is written anew without them, all else is checked.

    The archive is the old one or the new one, whatever kills the run; the same call then goes on. Raises UsageError
    where no row is chosen, or every row, DamagedRow and ArchiveError for what is damaged; then nothing has changed.
    """
    archive, started = rewritable(archive), time.monotonic()
    if (wish.where is None) == (wish.paths is None):
        raise UsageError("say which files to erase, by a condition or by a list of their paths")
    signer = None if wish.sign is None else ReceiptSigner(wish.sign)
    target = wish.receipt or _receipt_path(archive)
    _refuse_receipt(target, archive)
    recover(archive)
    if isinstance(archive, Path):
        refuse_existing(archive, overwrite=True)
    with ArchiveReader.open(archive) as source:
        gone = _rows_to_erase(source, wish)
        plan = _plan(source, gone)
        paths = [row.path for shard, rows in gone.items() for row in source.sound_rows(shard, sorted(rows))]
        report = EraseReport(
            path=shown_place(archive),
            rows=len(paths),
            rows_left=source.row_count - len(paths),
            paths=tuple(map(display_path, paths)),
            not_found=0 if wish.paths is None else len({*wish.paths} - {*paths}),
            rewritten=_rewritten(source, gone),
            receipt=None if dry_run else str(target),
            seconds=time.monotonic() - started,
        )
        if dry_run:
            return report
        if problems := source.check_files():
            raise ArchiveError(f"{'; '.join(problems[:5])}; nothing was erased: bring the archive back whole first")
        made = _receipt(report, wish, files_of_archive(archive)) | hashed_paths(paths)
        _rewrite(plan, made, target, signer)
    return EraseReport(**{**vars(report), "seconds": time.monotonic() - started})


def _rewrite(plan: CopyPlan, receipt: Receipt, target: Path, signer: ReceiptSigner | None) -> None:
    with open_rewriting(plan, {"command": "erase"}) as staging:
        kept = Kept({}) if staging.assembled() else keep_shards(plan, staging)

        def write_receipt(after: FileFacts) -> PendingReceipt:
            pending = PendingReceipt(staging.parts.parent)
            pending.write(_signed({**receipt, "after": after}, signer), target)
            return pending

        publish(staging, plan, kept, write_receipt)


def _signed(receipt: Receipt, signer: ReceiptSigner | None) -> Receipt:
    return receipt if signer is None else signer.signed(receipt)


def _refuse_receipt(target: Path, archive: Place) -> None:
    """Raises OutputExists, and UsageError where no receipt could be written: once the rows are gone, it is too late."""
    if os.path.lexists(target):
        raise OutputExists(f"{target} exists; choose another name for the receipt")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write the receipt {target}: there is no directory {target.parent}")
    if isinstance(archive, Path) and archive.absolute() in (target.parent.resolve(), *target.parent.resolve().parents):
        raise UsageError(f"the receipt {target} lies inside the archive {archive}; choose a place beside it")
    if len(os.fsencode(target.name)) > MAX_NAME_BYTES - UNFINISHED_BYTES:
        raise UsageError(f"cannot write the receipt {target}: its name is too long; choose another one by --receipt")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"cannot write the receipt {target}: {target.parent} may not be written to")


def _receipt_path(archive: Place) -> Path:
    folder = archive.parent if isinstance(archive, Path) else Path()
    return folder / f"{archive.absolute().name}.erased-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"


def _receipt(report: EraseReport, wish: Erasure, before: FileFacts) -> Receipt:
    return {
        "zippy_batch_receipt": 1,
        "archive": report.path,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "condition": wish.where,
        "paths_asked_for": None if wish.paths is None else len(wish.paths),
        "rows": report.rows,
        "rows_left": report.rows_left,
        "before": before,
    }


def _plan(source: ArchiveReader, gone: Mapping[int, set[int]]) -> CopyPlan:
    shards = left_after(source, gone)
    if not shards:
        raise UsageError(f"every row of {source.path} would be erased; delete the archive instead")
    rows = tuple(rows_of_shard(shard, [source]) for shard in shards)
    return CopyPlan((source,), (b"",), shards, common_info([source], rows))


def _rows_to_erase(source: ArchiveReader, wish: Erasure) -> dict[int, set[int]]:
    """Raises UsageError where there are none."""
    if wish.paths is None:
        gone = {shard: {*rows} for shard, rows in (chosen_rows(source, (), wish.where) or {}).items()}
    else:
        gone = _rows_of_paths(source, frozenset(wish.paths))
    if not any(gone.values()):
        raise UsageError(f"no row of {source.path} is to be erased: none fulfils what was asked for; nothing was done")
    return gone


def _rows_of_paths(source: ArchiveReader, paths: frozenset[bytes]) -> dict[int, set[int]]:
    found = {shard: {row for row, path in enumerate(source.paths(shard)) if path in paths} for shard in source.shards()}
    return {shard: rows for shard, rows in found.items() if rows}


def _rewritten(source: ArchiveReader, gone: Mapping[int, set[int]]) -> tuple[str, ...]:
    if not source.path.is_dir():
        return (source.path.name,)
    return tuple(source.part_facts(shard).name for shard in sorted(gone) if gone[shard])


def as_paths(paths: Iterable[str | bytes] | None) -> tuple[bytes, ...] | None:
    """Paths as bytes; text becomes what `os.fsencode` makes of it."""
    return None if paths is None else tuple(p if isinstance(p, bytes) else encoded_path(p) for p in paths)
