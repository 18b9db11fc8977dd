"""The directory beside the output in which an archive grows, and from which it is published in one step.

    .NAME.zippy-staging/
        lock                    held by the one run that works here; the kernel drops it when that run dies
        plan.json               fingerprint of the plan, and what it was taken of
        source-states.json      by shard, what tells whether its files have changed since
        FINGERPRINT/            committed parts, and parts being written under names that no two attempts share
        finished                the whole archive, file or directory
        publishing              `finished` is being put in its place, or has been; says what it is
        replaced-XXXX           what stood in that place, under --overwrite

Whatever kills a run, a committed part is whole, and it is in a folder named by the inputs and options that made it: a
worker that outlives its driver can only write the bytes that the next run would have written. `publishing` lets a run
that comes after a kill between the rename and the sweep see that the work is done.

A file takes the place of a file by a rename. Where a directory is among them, both exchange their names, so that at any
moment one of them stands there; where the file system cannot do that, two renames leave a moment without either.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import MANIFEST_NAME, staging_name
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.writer import PartFacts, merge_parts, part_name, write_manifest
from zippy_batch.errors import OutputExists, StagingMismatch, UsageError, WorkerError
from zippy_batch.paths import display_path
from zippy_batch.run.staging_plan import (
    PLAN_FILE,
    STATES_FILE,
    Describe,
    mismatch,
    parse_plan,
    parse_states,
    plan_text,
    refuse_other_content,
    refuse_other_kind,
    shard_of,
    states_text,
)
from zippy_batch.stores.atomic_file import exchange, flush, replacing
from zippy_batch.stores.object_path import Place


@dataclass(frozen=True)
class LocalStaging:
    """Held by one run at a time; made by `open_local_staging`."""

    root: Path
    output: Path
    fingerprint: str

    @property
    def parts(self) -> Path:
        return self.root / self.fingerprint[:32]

    def part(self, shard: int) -> Path:
        return self.parts / part_name(shard)

    def committed(self) -> set[int]:
        """Indices of the shards that are done."""
        return {shard for shard in map(shard_of, os.listdir(self.parts)) if shard is not None}

    @property
    def finished(self) -> Path:
        """The archive as it will be published; a run that finds it has nothing to do but that."""
        return self.root / "finished"

    def discard(self, shard: int) -> None:
        self.part(shard).unlink(missing_ok=True)
        flush(self.parts)

    def source_states(self) -> list[int]:
        try:
            return parse_states((self.root / STATES_FILE).read_bytes())
        except FileNotFoundError:
            return []

    def record_source_states(self, states: Sequence[int]) -> None:
        with replacing(self.root / STATES_FILE) as new:
            new.write_text(states_text(states))

    def require(self, shard: int) -> None:
        """Raises WorkerError when a part that a worker committed is not to be seen here."""
        if not self.part(shard).exists():
            raise WorkerError(
                f"shard {shard} was written, but {self.part(shard)} is not there: the output must be on storage that "
                f"every machine of the cluster shares"
            )

    def sweep_attempts(self, shards: int | None = None) -> None:
        """Remove what workers that died, or that lost their part to another attempt, left half written, and whatever
        is no part of the first so many shards."""
        kept = (shard for shard in self.committed() if shards is None or shard < shards)
        _sweep(self.parts, keep=tuple(map(part_name, kept)))

    def assembled(self) -> Path | None:
        """The whole archive, where an earlier run was killed between assembling and publishing it."""
        return self.finished if self.finished.exists() else None

    def take_apart(self) -> None:
        """Go back from `finished` to its parts."""
        if self.finished.is_dir():
            shutil.rmtree(self.parts)
            os.replace(self.finished, self.parts)
        else:
            self.finished.unlink()

    def is_published(self) -> bool:
        """Whether an earlier run was killed after it had put the archive in its place."""
        return is_publishing(self.output) and os.path.lexists(self.output) and not self.finished.exists()

    def publish(self, shards: int, describe: Describe) -> None:
        """Parts -> the archive in its place, in one step. Raises ArchiveError for a part that is damaged."""
        if not self.finished.exists():
            self.assemble(shards, describe)
        self._rename_into_place()

    def assemble(self, shards: int, describe: Describe, known: Mapping[int, PartFacts] | None = None) -> None:
        """Parts -> `finished`. Parts of a directory that are `known` are not read."""
        parts = [self.part(shard) for shard in range(shards)]
        info = describe({codec for part in parts for codec in _models_of_part(part)})
        if self.output.suffix == ".parquet":
            merge_parts(parts, self.finished, info)
        else:
            self.sweep_attempts(shards)
            write_manifest(self.parts, info, known)
            self.parts.rename(self.finished)

    def _rename_into_place(self) -> None:
        with replacing(self.root / "publishing") as new:
            new.write_text(_mark_of(self.finished))
        replaced = self.root / f"replaced-{uuid.uuid4().hex}"
        if not os.path.lexists(self.output) or not (self.output.is_dir() or self.finished.is_dir()):
            os.replace(self.finished, self.output)
        elif exchange(self.finished, self.output):
            os.replace(self.finished, replaced)
        else:
            os.replace(self.output, replaced)
            os.replace(self.finished, self.output)
        flush(self.output.parent)

    def set_replaced_aside(self) -> None:
        """Put what was replaced out of the way: it is `finished` where an earlier run was killed just after an exchange
        of names."""
        if is_publishing(self.output) and self.finished.exists():
            mark = (self.root / "publishing").read_text()
            if mark and mark != _mark_of(self.finished):
                os.replace(self.finished, self.root / f"replaced-{uuid.uuid4().hex}")


def _mark_of(archive: Path) -> str:
    """What tells an archive from the one that it takes the place of, where one of them is a directory."""
    if not archive.is_dir():
        return "file"
    manifest = archive / MANIFEST_NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else "empty"


def _models_of_part(part: Path) -> Iterable[str]:
    with ArchiveReader.open(part) as opened:
        return opened.info.models


def staging_path(output: Path) -> Path:
    return output.parent / staging_name(output.name)


def is_publishing(output: Path) -> bool:
    return (staging_path(output) / "publishing").exists()


@contextmanager
def recovering(output: Path) -> Iterator[None]:
    """Complete what a run was about to do that was killed while it put an archive in its place; the body runs before
    another run may work there. Raises UsageError while one works there."""
    root = staging_path(output)
    with _locked(root):
        staging = LocalStaging(root, output, "")
        staging.set_replaced_aside()
        is_done = is_publishing(output)
        if is_done and staging.finished.exists():
            staging._rename_into_place()
        yield
        if is_done or set(os.listdir(root)) <= {"lock"}:
            _remove(root)


@contextmanager
def open_local_staging(
    output: Path, fingerprint: str, facts: Mapping[str, Any], overwrite: bool
) -> Iterator[LocalStaging]:
    """The staging of `output` for the plan with this fingerprint, new or as an earlier run of it left it.

    Raises UsageError when another run works on this output, and StagingMismatch when the staging is of another plan
    and `overwrite` does not say to discard it. Kept for the next run when the body raises and any work is in it, and
    removed otherwise.
    """
    staging = LocalStaging(staging_path(output), output, fingerprint)
    with _locked(staging.root):
        # another run may have published between our first look and our lock
        refuse_existing(output, overwrite)
        _take_up(staging, facts, overwrite)
        try:
            yield staging
        except BaseException:
            if not _holds_work(staging.root):
                # a worker that has not ended yet may be writing there
                with suppress(OSError):
                    _remove(staging.root)
            raise
        _remove(staging.root)


def refuse_unsuitable(source: Place, output: Path) -> None:
    """Raises UsageError for an output that no archive can be written to, and for one in the source, which the next run
    would archive, or around it."""
    if output.name in ("", ".."):
        raise UsageError(f"cannot write {output}: it names no file; choose a name for the archive, such as out.parquet")
    if not _is_utf8(output.absolute()):
        raise UsageError(
            f"cannot write {display_path(os.fsencode(output))}: the Parquet library takes UTF-8 paths only"
        )
    refuse_other_kind(output)
    if not output.parent.is_dir():
        raise UsageError(f"cannot write {output}: there is no directory {output.parent}")
    if not isinstance(source, Path):
        return
    real, new = source.resolve(), output.parent.resolve() / output.name
    if new == real or real in new.parents:
        raise UsageError(f"the output {output} lies inside the source {source}; choose a place outside it")
    if new in real.parents:
        raise UsageError(f"the source {source} lies inside the output {output}; choose another output")


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raises OutputExists, and UsageError for a directory that is no archive, whatever `overwrite` says."""
    if not os.path.lexists(output) or is_publishing(output):
        return
    if not overwrite:
        _remove_remains(staging_path(output))
        raise OutputExists(f"{output} exists; choose another output, or pass --overwrite to replace it")
    if output.is_dir():
        refuse_other_content(output, set(os.listdir(output)))


def _remove_remains(root: Path) -> None:
    """Remove a staging of which nothing is left but its plan and its lock: a run that had published could not."""
    with suppress(OSError, UsageError):
        if set(os.listdir(root)) <= {PLAN_FILE, "lock"}:
            with _locked(root):
                _remove(root)


def _take_up(staging: LocalStaging, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Check or write the plan, sweep what was never committed."""
    staging.set_replaced_aside()
    found = _read_plan(staging.root)
    if found is not None and found["fingerprint"] != staging.fingerprint:
        if not overwrite and _holds_work(staging.root):
            raise StagingMismatch(mismatch(staging.root, staging.output, found["facts"], facts))
        _sweep(staging.root, keep=())
    kept = ("publishing",) if staging.is_published() else ()
    _sweep(staging.root, keep=(PLAN_FILE, STATES_FILE, staging.parts.name, "finished", *kept))
    staging.parts.mkdir(exist_ok=True)
    staging.sweep_attempts()
    with replacing(staging.root / PLAN_FILE) as new:
        new.write_text(plan_text(staging.fingerprint, facts))


def _holds_work(root: Path) -> bool:
    """Whether anything there took time to make."""
    return (root / "finished").exists() or (root / "publishing").exists() or any(root.glob("*/part-*.parquet"))


def _read_plan(root: Path) -> dict[str, Any] | None:
    try:
        return parse_plan((root / PLAN_FILE).read_bytes())
    except FileNotFoundError:
        return None


def _remove(root: Path) -> None:
    """`publishing` goes last, so that a run killed in here is still seen to have published."""
    _sweep(root, keep=(PLAN_FILE, "publishing"))
    for name in ("publishing", PLAN_FILE, "lock"):
        (root / name).unlink(missing_ok=True)
    root.rmdir()


def _sweep(root: Path, keep: tuple[str, ...]) -> None:
    for entry in list(os.scandir(root)):
        if entry.name == "lock" or entry.name in keep:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    descriptor = _lock(root)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(root: Path) -> int:
    """Descriptor of the locked lock file. Tries again when the run that held it has removed it in the meantime."""
    while True:
        try:
            root.mkdir(exist_ok=True)
            descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename == str(root / "lock"):
                continue
            raise UsageError(f"cannot write beside the output: {root}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(root / "lock")):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(f"another run is writing here ({root} is locked); wait for it, or stop it") from error
        except FileNotFoundError:
            pass
        os.close(descriptor)
