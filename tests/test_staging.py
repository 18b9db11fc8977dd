"""What every staging does, wherever the output is: each test runs on a directory and on an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from rows import face_rows, info_for
from s3 import S3
from s3 import s3 as s3
from s3 import s3_server as s3_server

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.errors import ArchiveError, OutputExists, StagingMismatch, UsageError, WorkerError
from zippy_batch.run.archive_shard import commit_part
from zippy_batch.run.staging import Staging, open_staging, refuse_output
from zippy_batch.stores.object_path import Place, delete, place, put_bytes

PLAN, OTHER_PLAN = "a" * 64, "b" * 64
Out = Callable[[str], Place]


@pytest.fixture(params=["local", "object"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Out:
    """The place of this name, on this machine or in a store."""
    if request.param == "local":
        return lambda name: tmp_path / name
    s3: S3 = request.getfixturevalue("s3")
    return lambda name: place(s3.uri(name))


@pytest.fixture(params=["out", "out.parquet"])
def output(request: pytest.FixtureRequest, out: Out) -> Place:
    return out(request.param)


def staging_of(
    output: Place, fingerprint: str = PLAN, facts: Mapping[str, Any] | None = None, overwrite: bool = False
) -> AbstractContextManager[Staging]:
    return open_staging(output, fingerprint, facts or {"quality": 75}, overwrite)


def shard_rows(shard: int) -> list[Row]:
    return face_rows(3, seed=shard)


def commit(staging: Staging, *shards: int) -> None:
    for shard in shards:
        rows = shard_rows(shard)
        commit_part(staging.part(shard), rows, info_for(len(rows)), verify=True)
        staging.require(shard)


def describe_two(codecs: Iterable[str]) -> ArchiveInfo:
    assert set(codecs) == {"latent"}
    return info_for(3, 3)


def make_archive(output: Place) -> None:
    with staging_of(output) as staging:
        commit(staging, 0, 1)
        staging.publish(2, describe_two)


def interrupted(output: Place, *shards: int) -> None:
    """Leaves the staging as a run that is interrupted after these shards."""
    with suppress(KeyboardInterrupt), staging_of(output) as staging:
        commit(staging, *shards)
        raise KeyboardInterrupt


def remove(path: Place) -> None:
    path.unlink() if isinstance(path, Path) else delete(path)


def write(path: Place, data: bytes) -> None:
    if isinstance(path, Path):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    else:
        put_bytes(data, path)


def rows_of(output: Place) -> list[object]:
    with ArchiveReader.open(output) as archive:
        return [row for shard in archive.shards() for row in archive.read_rows(shard)]


def test_what_is_published_is_the_archive_of_the_parts(output: Place) -> None:
    make_archive(output)
    assert rows_of(output) == shard_rows(0) + shard_rows(1)


def test_a_new_staging_is_empty(output: Place) -> None:
    with staging_of(output) as staging:
        assert staging.committed() == set()
        assert staging.assembled() is None
        assert not staging.is_published()
    assert not output.exists()


def test_the_name_of_the_parts_is_that_of_their_plan(output: Place) -> None:
    with staging_of(output) as staging:
        assert PLAN.startswith(staging.parts.name)
        assert staging.part(7).parent == staging.parts


def test_committed_parts_are_kept_for_the_next_run(output: Place) -> None:
    interrupted(output, 1)
    assert not output.exists()
    with staging_of(output) as staging:
        assert staging.committed() == {1}
        commit(staging, 0)
        staging.publish(2, describe_two)
    assert rows_of(output) == shard_rows(0) + shard_rows(1)


def test_a_finished_staging_leaves_nothing_behind(output: Place) -> None:
    make_archive(output)
    with staging_of(output, overwrite=True) as staging:
        assert staging.committed() == set()


def test_a_part_that_is_missing_is_named(output: Place) -> None:
    with staging_of(output) as staging:
        commit(staging, 0)
        remove(staging.part(0))
        with pytest.raises(WorkerError, match=r"shard 0 was written, but .*part-00000\.parquet is not there"):
            staging.require(0)


def test_a_part_that_is_damaged_leaves_the_output_as_it_was(output: Place) -> None:
    make_archive(output)
    before = rows_of(output)
    with staging_of(output, OTHER_PLAN, overwrite=True) as staging:
        commit(staging, 0, 1)
        write(staging.part(1), b"PAR1 and what is no footer")
        with pytest.raises(ArchiveError):
            staging.publish(2, describe_two)
    assert rows_of(output) == before


def test_parts_beyond_the_last_shard_are_not_published(output: Place) -> None:
    with staging_of(output) as staging:
        commit(staging, 0, 1, 2)
        staging.publish(2, describe_two)
    assert rows_of(output) == shard_rows(0) + shard_rows(1)


def test_an_unfinished_run_of_another_plan_is_not_discarded_unasked(output: Place) -> None:
    interrupted(output, 0)
    with (
        pytest.raises(StagingMismatch, match="quality: 75 then, 80 now"),
        staging_of(output, OTHER_PLAN, {"quality": 80}),
    ):
        pass
    with staging_of(output) as staging:
        assert staging.committed() == {0}


def test_overwrite_discards_an_unfinished_run_of_another_plan(output: Place) -> None:
    interrupted(output, 0)
    with staging_of(output, OTHER_PLAN, {"quality": 80}, overwrite=True) as staging:
        assert staging.committed() == set()


def test_a_staging_without_work_gives_way_to_another_plan(output: Place) -> None:
    interrupted(output)
    with staging_of(output, OTHER_PLAN, {"quality": 80}) as staging:
        assert staging.committed() == set()


def test_one_run_works_on_an_output_at_a_time(output: Place) -> None:
    with staging_of(output), pytest.raises(UsageError, match="another run is writing here"), staging_of(output):
        pass


def test_an_output_that_exists_is_replaced_only_if_asked(output: Place) -> None:
    make_archive(output)
    with pytest.raises(OutputExists, match="--overwrite"), staging_of(output):
        pass
    with staging_of(output, overwrite=True) as staging:
        commit(staging, 1, 0)
        staging.publish(1, lambda codecs: info_for(3))
    assert rows_of(output) == shard_rows(0)


def test_a_directory_that_is_no_archive_is_never_replaced(out: Out) -> None:
    output = out("out")
    write(output / "letter.txt", b"dear all")
    with pytest.raises(UsageError, match="not an archive"), staging_of(output, overwrite=True):
        pass
    assert (output / "letter.txt").exists()


def test_a_file_gives_way_to_a_directory_and_the_reverse(out: Out) -> None:
    for old, new in (("a.parquet", "a.parquet"), ("b", "b")):
        write(out(old) if old == "b" else out(old) / "_manifest.json", b"{}")
        with staging_of(out(new), overwrite=True) as staging:
            commit(staging, 0, 1)
            staging.publish(2, describe_two)
        assert rows_of(out(new)) == shard_rows(0) + shard_rows(1)


def test_a_run_killed_after_publishing_is_seen_to_have_published(output: Place) -> None:
    with suppress(KeyboardInterrupt), staging_of(output) as staging:
        commit(staging, 0, 1)
        staging.publish(2, describe_two)
        raise KeyboardInterrupt
    with staging_of(output) as staging:
        assert staging.is_published()
    with pytest.raises(OutputExists), staging_of(output):
        pass
    assert rows_of(output) == shard_rows(0) + shard_rows(1)


def test_an_output_inside_its_source_is_refused(out: Out) -> None:
    source = out("faces")
    write(source / "a.jpg", b"face")
    with pytest.raises(UsageError, match="inside the source"):
        refuse_output(source, source / "out.parquet", overwrite=False)
    with pytest.raises(UsageError, match="inside the output"):
        refuse_output(source / "more", source, overwrite=False)


def test_what_the_parts_are_made_of_is_known_to_the_next_run_of_the_same_plan(output: Place) -> None:
    with suppress(KeyboardInterrupt), staging_of(output) as staging:
        assert staging.source_states() == []
        staging.record_source_states([5, 7])
        commit(staging, 0, 1)
        raise KeyboardInterrupt
    with suppress(KeyboardInterrupt), staging_of(output) as staging:
        assert staging.source_states() == [5, 7]
        staging.discard(1)
        assert staging.committed() == {0}
        raise KeyboardInterrupt
    with suppress(KeyboardInterrupt), staging_of(output, OTHER_PLAN, overwrite=True) as staging:
        assert staging.source_states() == []
        commit(staging, 0)
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["x.tar", "faces.ZIP", "x.parquet.gz", "out.Parquet"])
def test_a_directory_named_like_a_file_of_another_kind_is_refused(name: str, out: Out, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"an archive is a \.parquet file, or a directory whose name does not end in "):
        refuse_output(tmp_path / "faces", out(name), overwrite=True)
