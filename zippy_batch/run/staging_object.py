"""Where an archive grows in an object store, and how it gets its name there: the sister of `staging_local`,
for a store that renames nothing and locks nothing.

    .NAME.zippy-staging/
        leases/                 who works here (`stores/lease.py`)
        plan.json               fingerprint of the plan, and what it was taken of
        source-states.json      by shard, what tells whether its files have changed since
        FINGERPRINT/            committed parts
        attempts/               uploads under names that no two attempts share, whole or broken; swept
        publishing              the archive is being put in its place
        published               it is there

A part is committed by a copy within the store from an upload that was checked. A single file is joined on this machine
and committed in the same way. Of a directory the parts are copied to their place, then the models, and the manifest
last: without a manifest it is no archive, so nothing half done is ever taken for one. Where an archive is there
already, it becomes the new one in the steps of `swap_object`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zippy_batch.archives.info import MANIFEST_NAME, model_name, staging_name
from zippy_batch.archives.writer import PartFacts, manifest_text, merge_parts, part_facts, part_name, sha256_of
from zippy_batch.errors import ArchiveError, OutputExists, StagingMismatch, StorageError, UsageError, WorkerError
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
from zippy_batch.run.swap_object import FINISHED, FileFacts, Swap, finish_swap, plan_directory, state_of_object
from zippy_batch.stores.lease import Lease, leased
from zippy_batch.stores.object_path import (
    COPY_LIMIT_BYTES,
    ObjectPath,
    Place,
    at_once,
    copy,
    delete,
    delete_all,
    download,
    listed,
    put,
    put_bytes,
    require_bucket,
    size_of,
    sizes_in,
)


@dataclass(frozen=True)
class ObjectStaging:
    """Held by one run at a time; made by `open_object_staging`."""

    root: ObjectPath
    output: ObjectPath
    fingerprint: str
    lease: Lease
    _sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of the committed parts, by shard."""

    @property
    def parts(self) -> ObjectPath:
        return self.root / self.fingerprint[:32]

    def part(self, shard: int) -> ObjectPath:
        return self.parts / part_name(shard)

    def committed(self) -> set[int]:
        """Indices of the shards that are done."""
        for name, size_bytes in sizes_in(self.parts).items():
            shard = shard_of(name)
            # some servers make an empty object of a copy whose request was cut off within its head
            if shard is not None and size_bytes:
                self._note(shard, size_bytes)
        return set(self._sizes)

    def discard(self, shard: int) -> None:
        delete(self.part(shard))
        self._sizes.pop(shard, None)

    def source_states(self) -> list[int]:
        try:
            return parse_states((self.root / STATES_FILE).read_bytes())
        except FileNotFoundError:
            return []

    def record_source_states(self, states: Sequence[int]) -> None:
        put_bytes(states_text(states).encode(), self.root / STATES_FILE)

    def require(self, shard: int) -> None:
        """Raises WorkerError when a part that a worker committed is not there, or when this run was given up for dead,
        and UsageError when the archive gets too large for one file."""
        self.lease.require()
        size_bytes = size_of(self.part(shard))
        if size_bytes is None:
            raise WorkerError(f"shard {shard} was written, but {self.part(shard)} is not there; run it again")
        self._note(shard, size_bytes)

    def _note(self, shard: int, size_bytes: int) -> None:
        self._sizes[shard] = size_bytes
        if self._is_single_file() and self.output.store.scheme == "s3" and sum(self._sizes.values()) > COPY_LIMIT_BYTES:
            raise UsageError(
                f"{self.output} would have more than {COPY_LIMIT_BYTES} bytes, which S3 does not copy in one request; "
                f"write a directory (an output that does not end in .parquet)"
            )

    def assembled(self) -> None:
        """Nothing is kept between assembling and publishing: the archive is assembled on this machine."""

    def take_apart(self) -> None:
        pass

    def is_published(self) -> bool:
        """Whether an earlier run was killed after it had put the archive in its place."""
        return (self.root / "published").exists() and self.output.exists()

    def publish(self, shards: int, describe: Describe) -> None:
        """Parts -> the archive in its place. `describe` makes its description, given the codecs that have rows."""
        self.lease.require()
        with tempfile.TemporaryDirectory(prefix="zippy-") as folder:
            if self._is_single_file():
                self._publish_file(Path(folder), shards, describe)
            else:
                self._publish_directory(Path(folder), shards, describe)
        put_bytes(b"", self.root / "published")

    def assemble(
        self, shards: int, describe: Describe, known: Mapping[int, PartFacts], staying: Set[int]
    ) -> tuple[Swap, FileFacts]:
        """Make the next state of the archive, whole, in this staging. Parts that are `known` are not read, and those
        that are `staying` in their place are not here. Raises ArchiveError for a part that is damaged."""
        self.lease.require()
        with tempfile.TemporaryDirectory(prefix="zippy-") as folder:
            if self._is_single_file():
                return self._assemble_file(Path(folder), shards, describe)
            missing = [shard for shard in range(shards) if shard not in known]
            fetched = zip(missing, at_once(lambda shard: self._look(shard, Path(folder)), missing), strict=True)
            found = {**known, **dict(fetched)}
        facts = [found[shard] for shard in range(shards)]
        info = describe({codec for one in facts for codec in one.head.models})
        return plan_directory(self.root, self.output, self.parts.name, info, (facts, set(staying)))

    def _assemble_file(self, folder: Path, shards: int, describe: Describe) -> tuple[Swap, FileFacts]:
        facts = at_once(lambda shard: self._fetch(shard, folder), range(shards))
        made = folder / FINISHED
        merge_parts([folder / one.name for one in facts], made, describe({c for one in facts for c in one.head.models}))
        put(made, self.root / "attempts", self.root / FINISHED)
        files = {self.output.name: {"bytes": made.stat().st_size, "sha256": sha256_of(made)}}
        return Swap(replaced=state_of_object(self.output)), files

    def swap(self, swap: Swap) -> None:
        """Put what `assemble` made in its place. Raises UsageError where another run has changed the archive."""
        self.lease.require()
        swap.write(self.root)
        if not finish_swap(self.root, self.output, self.lease):
            raise UsageError(f"{self.output} was changed by another run meanwhile; give the same command again")

    def _look(self, shard: int, folder: Path) -> PartFacts:
        facts = self._fetch(shard, folder)
        (folder / facts.name).unlink()
        return facts

    def _is_single_file(self) -> bool:
        return self.output.suffix == ".parquet"

    def _publish_file(self, folder: Path, shards: int, describe: Describe) -> None:
        facts = at_once(lambda shard: self._fetch(shard, folder), range(shards))
        info = describe({codec for one in facts for codec in one.head.models})
        merge_parts([folder / one.name for one in facts], folder / "finished", info)
        self._announce()
        if self.output.is_dir():
            delete_all(self.output)
        put(folder / "finished", self.root / "attempts", self.output)

    def _publish_directory(self, folder: Path, shards: int, describe: Describe) -> None:
        facts = at_once(lambda shard: self._look(shard, folder), range(shards))
        info = describe({codec for one in facts for codec in one.head.models})
        if (self.output / MANIFEST_NAME).exists():
            swap, _ = plan_directory(self.root, self.output, self.parts.name, info, (facts, set()))
            self._announce()
            self.swap(swap)
            return
        models = {model_name(codec): data for codec, data in info.model_files.items()}
        self._announce()
        if self.output.is_file():
            delete(self.output)
        at_once(lambda shard: copy(self.part(shard), self.output / part_name(shard)), range(shards))
        there, names = sizes_in(self.output), {one.name: one.size_bytes for one in facts}
        for name in set(there) - set(names):
            delete(self.output / name)
        if wrong := sorted(name for name, size_bytes in names.items() if there.get(name) != size_bytes):
            raise StorageError(f"{self.output / wrong[0]} is not what was copied there; run the same command again")
        for name, data in {**models, MANIFEST_NAME: manifest_text(info, facts)}.items():
            (folder / name).write_bytes(data)
            put(folder / name, self.root / "attempts", self.output / name)

    def _fetch(self, shard: int, folder: Path) -> PartFacts:
        """Raises ArchiveError, naming the object, for what is no part."""
        local = download(self.part(shard), folder / part_name(shard))
        try:
            return part_facts(local)
        except ArchiveError as error:
            raise ArchiveError(f"{self.part(shard)}: {error}") from error

    def _announce(self) -> None:
        self.lease.require()
        put_bytes(b"", self.root / "publishing")

    def remove(self) -> None:
        """`published` goes last, so that a run killed in here is still seen to have published."""
        self.lease.stop()
        _sweep(self.root, keep=(PLAN_FILE, "published", "leases"))
        delete_all(self.root)


def object_staging_path(output: ObjectPath) -> ObjectPath:
    return output.parent / staging_name(output.name)


@contextmanager
def open_object_staging(
    output: ObjectPath, fingerprint: str, facts: Mapping[str, Any], overwrite: bool
) -> Iterator[ObjectStaging]:
    """Does what `open_local_staging` does, in an object store."""
    root = object_staging_path(output)
    with leased(root) as lease:
        # another run may have published between our first look and our lease
        refuse_existing_object(output, overwrite)
        finish_swap(root, output, lease)
        staging = ObjectStaging(root, output, fingerprint, lease)
        _take_up(staging, facts, overwrite)
        yield staging
        staging.remove()


@contextmanager
def recovering_object(output: ObjectPath) -> Iterator[None]:
    """Does what `recovering` does for a directory of this machine."""
    root = object_staging_path(output)
    with leased(root) as lease:
        staging = ObjectStaging(root, output, "", lease)
        is_done = finish_swap(root, output, lease) is not None or staging.is_published()
        yield
        if is_done:
            staging.remove()


def refuse_unsuitable_object(source: Place, output: ObjectPath) -> None:
    """Raises UsageError for an output without a name or a bucket, in the source, or around it."""
    if "/" not in output.key.strip("/"):
        raise UsageError(
            f"cannot write {output}: it names no object; choose a name in it, such as {output}/out.parquet"
        )
    refuse_other_kind(output)
    require_bucket(output)
    if not isinstance(source, ObjectPath) or source.store.scheme != output.store.scheme:
        return
    if f"{output.key}/".startswith(f"{source.key}/"):
        raise UsageError(f"the output {output} lies inside the source {source}; choose a place outside it")
    if source.key.startswith(f"{output.key}/"):
        raise UsageError(f"the source {source} lies inside the output {output}; choose another output")


def refuse_existing_object(output: ObjectPath, overwrite: bool) -> None:
    """Raises OutputExists, and UsageError for a directory that is no archive, whatever `overwrite` says."""
    if not output.exists() or {"publishing", "published"} & set(sizes_in(object_staging_path(output))):
        return
    if not overwrite:
        raise OutputExists(f"{output} exists; choose another output, or pass --overwrite to replace it")
    if output.is_dir():
        refuse_other_content(output, {info.base_name for info in listed(output)})


def _take_up(staging: ObjectStaging, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Check or write the plan, sweep what was never committed."""
    found = _read_plan(staging.root)
    if found is not None and found["fingerprint"] != staging.fingerprint:
        if not overwrite and _holds_work(staging.root):
            raise StagingMismatch(mismatch(staging.root, staging.output, found["facts"], facts))
        _sweep(staging.root, keep=("leases",))
    kept = ("published",) if staging.is_published() else ()
    _sweep(staging.root, keep=(PLAN_FILE, STATES_FILE, "leases", "publishing", staging.parts.name, *kept))
    put_bytes(plan_text(staging.fingerprint, facts).encode(), staging.root / PLAN_FILE)


def _holds_work(root: ObjectPath) -> bool:
    """Whether anything there took time to make."""
    found = listed(root, recursive=True)
    return any(shard_of(info.base_name) is not None or info.base_name == "publishing" for info in found)


def _read_plan(root: ObjectPath) -> dict[str, Any] | None:
    """None where there is none, and where a request that was cut off made it empty."""
    try:
        text = (root / PLAN_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return parse_plan(text) if text else None


def _sweep(root: ObjectPath, keep: tuple[str, ...]) -> None:
    for info in listed(root):
        if info.base_name not in keep:
            (delete if info.is_file else delete_all)(root / info.base_name)
