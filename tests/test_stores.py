"""Whole runs from and to a store that speaks S3."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import CODECS, files_of, make_faces
from s3 import S3, Proxy, content, upload
from s3 import proxy as proxy
from s3 import s3 as s3
from s3 import s3_server as s3_server
from tiny import tiny_model
from typer.testing import CliRunner

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.cli import app
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions, VerifyOptions
from zippy_batch.errors import DamagedRow, OutputExists, StagingMismatch, StorageError, UsageError, WorkerError
from zippy_batch.run import staging_object, swap_object
from zippy_batch.run.pipeline import archive, restore, stats, verify
from zippy_batch.run.plan import Shard
from zippy_batch.run.quarantine import CODING, JournalEntry, QuarantinedShard, open_journal, read_journal
from zippy_batch.run.report import ArchiveReport, Progress, RestoreReport
from zippy_batch.run.staging_object import object_staging_path
from zippy_batch.sources.object_store import list_objects
from zippy_batch.stores import lease as leases
from zippy_batch.stores.lease import Owner, leased
from zippy_batch.stores.object_path import ObjectPath, Place, delete, delete_all, listed, place, put_bytes

OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
"""The 12 files of `make_faces` are 3 shards of 4."""
PART = re.compile(r"/[0-9a-f]{32}/part-\d+\.parquet$")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture(params=["out.parquet", "out"])
def name(request: pytest.FixtureRequest) -> str:
    """A single file, and a directory of parts."""
    return str(request.param)


def make(
    source: str | Place,
    output: str | Place,
    options: ArchiveOptions = OPTIONS,
    interrupt_after: int | None = None,
    **run: Any,
) -> ArchiveReport:
    """Interrupted once this many shards are committed."""

    def watch(progress: Progress) -> None:
        if interrupt_after is not None and progress.shards >= interrupt_after and not progress.is_check:
            raise KeyboardInterrupt

    return archive(source, output, options, RunOptions(**{"workers": 1, **run}), watch, CODECS)


def back(path: str | Place, destination: str | Place, **more: Any) -> RestoreReport:
    return restore(path, destination, RestoreOptions(device="cpu", **more), codecs=CODECS)


def is_tidy(s3: S3, name: str) -> bool:
    """Whether nothing is left of a run."""
    return not listed(object_staging_path(s3.at(name)), recursive=True)


# ---- archive ----


def test_an_archive_in_a_store_is_that_of_a_directory(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    make(faces, tmp_path / name)
    report = make(faces, s3.uri(f"deep/{name}"))
    assert content(s3.at(f"deep/{name}")) == content(tmp_path / name)
    assert is_tidy(s3, f"deep/{name}")
    assert report.path == f"s3://faces-bucket/deep/{name}"
    found = stats(s3.uri(f"deep/{name}"))
    assert found.total == replace(stats(tmp_path / name).total)
    assert verify(s3.uri(f"deep/{name}"), faces, VerifyOptions(deep=True), codecs=CODECS).exit_code == 0
    back(s3.uri(f"deep/{name}"), tmp_path / "there")
    back(tmp_path / name, tmp_path / "here")
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_a_source_in_a_store_is_archived_as_a_directory_is(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    upload(faces, s3.at("faces"))
    for file in list_objects(s3.at("faces")).files:
        os.utime(os.path.join(os.fsencode(faces), file.path), (file.mtime_s, file.mtime_s))
    make(faces, tmp_path / name)
    make(s3.uri("faces"), s3.uri(name))
    assert content(s3.at(name)) == content(tmp_path / name)
    make(s3.uri("faces"), tmp_path / f"again-{name}")
    assert content(tmp_path / f"again-{name}") == content(tmp_path / name)
    assert verify(s3.uri(name), s3.uri("faces"), codecs=CODECS).exit_code == 0
    delete(s3.at("faces/3.jpg"))
    assert [finding.path for finding in verify(s3.uri(name), s3.uri("faces"), codecs=CODECS).extra] == ["3.jpg"]


def test_a_model_that_is_not_built_in_goes_with_a_directory(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_model().data)
    options = replace(OPTIONS, model=str(tmp_path / "tiny.safetensors"), exact="never", verify=False)
    for output in (tmp_path / name, s3.uri(name)):
        archive(faces / "sub", output, options, RunOptions(workers=1))
    assert content(s3.at(name)) == content(tmp_path / name)
    report = restore(s3.uri(name), tmp_path / "back", RestoreOptions(device="cpu"))
    assert report.total.images == 2


def test_a_file_uri_is_a_path(faces: Path, tmp_path: Path) -> None:
    make(faces.as_uri(), (tmp_path / "out.parquet").as_uri())
    make(faces, tmp_path / "same.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "same.parquet").read_bytes()
    back((tmp_path / "out.parquet").as_uri(), (tmp_path / "back").as_uri())
    assert len(files_of(tmp_path / "back")) == 12


@pytest.mark.usefixtures("s3_server", "ray_session")
@pytest.mark.parametrize("name", ["out"])
def test_workers_on_ray_connect_anew(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    """From the URI alone: credentials are in its first part."""
    uri = s3.uri(name).replace("s3://", "s3://worker:pass@")
    make(faces, tmp_path / name)
    make(faces, uri, workers=2)
    assert content(s3.at(name)) == content(tmp_path / name)
    restore(uri, tmp_path / "back", RestoreOptions(device="cpu"), RunOptions(workers=2), codecs=CODECS)
    assert len(files_of(tmp_path / "back")) == 12


# ---- what exists, what is unsuitable ----


def test_output_that_exists_is_left_alone(faces: Path, name: str, s3: S3) -> None:
    make(faces, s3.uri(name))
    before = content(s3.at(name))
    with pytest.raises(OutputExists, match="--overwrite"):
        make(faces, s3.uri(name), replace(OPTIONS, quality=50))
    assert content(s3.at(name)) == before
    make(faces / "sub", s3.uri(name), replace(OPTIONS, quality=50), overwrite=True)
    assert stats(s3.uri(name)).total.images == 2
    assert len(content(s3.at(name))) == (1 if name.endswith(".parquet") else 2)


def test_overwrite_does_not_remove_what_is_no_archive(faces: Path, s3: S3) -> None:
    put_bytes(b"mine", s3.at("photos/a.jpg"))
    with pytest.raises(UsageError, match="not an archive"):
        make(faces, s3.uri("photos"), overwrite=True)
    assert set(content(s3.at("photos"))) == {"a.jpg"}


def test_unsuitable_outputs_are_refused_before_anything_is_written(faces: Path, s3: S3) -> None:
    upload(faces / "sub", s3.at("faces"))
    with pytest.raises(UsageError, match="inside the source"):
        make(s3.uri("faces"), s3.uri("faces/out.parquet"))
    with pytest.raises(UsageError, match="inside the output"):
        make(s3.uri("faces/sub"), s3.uri("faces"))
    with pytest.raises(UsageError, match="names no object"):
        make(faces, s3.uri(""))
    with pytest.raises(UsageError, match="no such bucket"):
        make(faces, s3.uri("out", bucket="another-bucket"))
    with pytest.raises(UsageError, match="directory of this machine"):
        back(s3.uri("out.parquet"), s3.uri("back"))
    with pytest.raises(UsageError, match=r"there is no archive s3://faces-bucket/out.parquet"):
        stats(s3.uri("out.parquet"))
    with pytest.raises(UsageError, match="no file in s3:"):
        make(s3.uri("nothing"), s3.uri("out"))
    assert set(content(s3.at("faces"))) == {"0.png", "1.png"}


def test_a_single_file_that_s3_would_not_copy_is_refused_early(
    faces: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging_object, "COPY_LIMIT_BYTES", 6000)
    with pytest.raises(UsageError, match=r"more than 6000 bytes.*write a directory"):
        make(faces, s3.uri("out.parquet"))
    assert not s3.at("out.parquet").exists()
    assert make(faces, s3.uri("out")).total.images == 12


# ---- interrupted, and two at once ----


def test_rerun_does_only_what_is_missing(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    make(faces, tmp_path / name)
    with pytest.raises(KeyboardInterrupt):
        make(faces, s3.uri(name), interrupt_after=1)
    assert not s3.at(name).exists()
    staging = object_staging_path(s3.at(name))
    put_bytes(b"half", staging / "attempts" / "part-00001.parquet.0123")
    (parts,) = [info.base_name for info in listed(staging) if len(info.base_name) == 32]
    put_bytes(b"", staging / parts / "part-00002.parquet")
    with pytest.raises(StagingMismatch, match="quality: 75 then, 50 now"):
        make(faces, s3.uri(name), replace(OPTIONS, quality=50))
    report = make(faces, s3.uri(name))
    assert report.run is not None
    assert (report.run.images, report.run.shards_resumed) == (8, 1)
    assert content(s3.at(name)) == content(tmp_path / name)
    assert is_tidy(s3, name)


def test_a_part_that_is_damaged_in_the_staging_is_named_and_done_anew(
    faces: Path, name: str, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(faces, s3.uri(name), interrupt_after=1)
    (part,) = [info for info in listed(object_staging_path(s3.at(name)), recursive=True) if PART.search(info.path)]
    path = ObjectPath(s3.at(name).store, part.path)
    put_bytes(path.read_bytes()[:-3], path)
    report = make(faces, s3.uri(name))
    assert f"{path} is no longer what was written there" in caplog.text
    assert report.run is not None
    assert (report.run.images, report.run.shards_resumed) == (12, 0)


@pytest.mark.parametrize("step", ["part_facts", "_announce", "put", "copy", "published", "_sweep"])
def test_a_run_that_fails_while_it_publishes_is_finished_by_the_next(
    step: str, faces: Path, name: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(faces / "sub", s3.uri(name))
    make(faces, tmp_path / name)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("broken off")

    def fail_at_the_end(data: bytes, path: object) -> None:
        fail() if str(path).endswith("published") else put_bytes(data, path)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        if step == "_announce":
            patch.setattr(staging_object.ObjectStaging, step, fail)
        elif step == "published":
            patch.setattr(staging_object, "put_bytes", fail_at_the_end)
        elif step != "_sweep":
            patch.setattr(staging_object, step, fail)
            if step == "copy":
                patch.setattr(swap_object, step, fail)
        else:
            patch.setattr(staging_object.ObjectStaging, "remove", fail)
        if step == ("copy" if name.endswith(".parquet") else "put"):
            make(faces, s3.uri(name), overwrite=True)
            return
        with pytest.raises(StorageError):
            make(faces, s3.uri(name), overwrite=True)
    make(faces, s3.uri(name), overwrite=step in ("part_facts", "_announce"))
    assert content(s3.at(name)) == content(tmp_path / name)
    assert is_tidy(s3, name)


SLOW_RUN = """
import sys, time
from fakes import CODECS
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.run.pipeline import archive
options = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
archive(sys.argv[1], sys.argv[2], options, RunOptions(workers=1), lambda _: time.sleep(0.2), CODECS)
"""


def test_a_run_that_is_killed_holds_up_no_other(faces: Path, s3: S3, tmp_path: Path) -> None:
    """Its lease stays, and is that of a process that is not there any more."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SLOW_RUN, str(faces), s3.uri("out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    part = object_staging_path(s3.at("out"))
    until = time.monotonic() + 120
    while not any(info.base_name == "part-00000.parquet" for info in listed(part, recursive=True)):
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(UsageError, match=rf"another run is writing here \(process {process.pid} on "):
        make(faces, s3.uri("out"))
    process.kill()
    process.wait()
    report = make(faces, s3.uri("out"))
    assert report.run is not None
    assert report.run.shards_resumed >= 1
    make(faces, tmp_path / "out")
    assert content(s3.at("out")) == content(tmp_path / "out")


def elsewhere() -> bytes:
    return json.dumps(asdict(replace(Owner.this(), host="other", machine="other boot"))).encode()


def test_the_later_of_two_runs_refuses_and_names_the_other(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    root = s3.at("staging")
    monkeypatch.setattr(leases, "WITHDRAWAL_S", 0.5)
    with (
        leased(root),
        pytest.raises(UsageError, match=rf"process {os.getpid()} on .*counts as dead 300 s after.*or once you delete"),
        leased(root),
    ):
        pass
    with leased(root):
        pass
    put_bytes(elsewhere(), root / "leases" / "0.json")
    with pytest.raises(UsageError, match="on other, since"), leased(root):
        pass


def test_a_lease_that_a_failing_store_did_not_let_go_holds_up_no_other_run_of_its_process(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3.at("staging")

    def fail(path: ObjectPath) -> None:
        raise StorageError(f"{path}: the store cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(leases, "delete", fail)
        with pytest.raises(StorageError, match="in the run"), leased(root):
            raise StorageError("in the run")
    assert len(listed(root / "leases")) == 1
    with leased(root):
        assert len(listed(root / "leases")) == 1


def test_a_lease_that_nobody_renews_is_dead(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    root = s3.at("staging")
    put_bytes(elsewhere(), root / "leases" / "0.json")
    monkeypatch.setattr(leases, "LEASE_S", 0.9)
    time.sleep(2.1)
    with leased(root):
        assert len([info for info in listed(root / "leases") if info.is_file]) == 1


def test_leases_are_renewed_and_a_lost_one_stops_the_run(faces: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.1)
    root = s3.at("staging")
    with leased(root) as lease:
        s3.requests.clear()
        until = time.monotonic() + 120
        while not any(method == "PUT" and "leases" in path for method, path in s3.requests):
            assert time.monotonic() < until
            time.sleep(0.02)
        lease.require()
        delete_all(root / "leases")
        with pytest.raises(WorkerError, match="another run took this one for dead"):
            lease.require()

    def rob(progress: Progress) -> None:
        delete_all(object_staging_path(s3.at("out")) / "leases")

    with pytest.raises(WorkerError, match="another run took this one for dead"):
        archive(faces, s3.uri("out"), OPTIONS, RunOptions(workers=1), rob, CODECS)
    assert not s3.at("out").exists()


def test_a_worker_notes_its_steps_in_the_store(s3: S3) -> None:
    unit = QuarantinedShard(Shard(0, ()), s3.at("staging/parts/part-00000.parquet.journal-0"))
    assert read_journal(unit.journal) is None
    with open_journal(unit) as journal, journal.at(CODING, 3):
        assert read_journal(unit.journal) == JournalEntry(CODING, 3)
    assert read_journal(unit.journal) is None


# ---- a bad line, a bad object ----


def test_a_line_that_breaks_leaves_what_is_committed(
    faces: Path, name: str, s3: S3, proxy: Proxy, tmp_path: Path
) -> None:
    """Cut at several places before it is published; each time the next run goes on."""
    make(faces, tmp_path / name)
    make(faces, s3.uri(f"whole/{name}", proxy.host))
    for share in (0.1, 0.25, 0.4):
        proxy.allowed_bytes = int(share * proxy.sent_bytes)
        with pytest.raises(StorageError, match=r"cannot be reached, or broke off.*run the same command again"):
            make(faces, s3.uri(name, proxy.host))
        assert not s3.at(name).exists()
        for lease in listed(object_staging_path(s3.at(name)) / "leases"):
            # of this process, which goes on
            if lease.is_file:
                delete(object_staging_path(s3.at(name)) / "leases" / lease.base_name)
    proxy.allowed_bytes = None
    report = make(faces, s3.uri(name, proxy.host))
    assert report.run is not None
    assert report.run.shards_resumed >= 1
    assert content(s3.at(name)) == content(tmp_path / name)


def test_an_unreachable_archive_is_not_called_damaged(faces: Path, s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    make(faces, s3.uri("out"))
    with ArchiveReader.open(s3.at("out")) as opened:
        assert len(opened.read_rows(0)) == 4
    through = place(s3.uri("out", proxy.host))
    with ArchiveReader.open(through, allow_damage=True) as opened:
        proxy.allowed_bytes = 0
        proxy.close()
        with pytest.raises(StorageError):
            opened.read_rows(0)


def test_damage_is_found_and_what_is_whole_comes_back(faces: Path, name: str, s3: S3, tmp_path: Path) -> None:
    make(faces, s3.uri(name))
    path = s3.at(name) if name.endswith(".parquet") else s3.at(name) / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    for at in range(600, 640):
        data[at] ^= 0xFF
    put_bytes(bytes(data), path)
    report = verify(s3.uri(name), codecs=CODECS)
    assert report.exit_code == 1
    with pytest.raises(DamagedRow):
        back(s3.uri(name), tmp_path / "back")
    assert 0 < back(s3.uri(name), tmp_path / "rest", keep_going=True).total.images < 12
    put_bytes(bytes(data[: len(data) // 2]), path)
    with pytest.raises(Exception, match=r"truncated|bytes instead of"):
        stats(s3.uri(name))


def test_one_row_is_read_without_the_others(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for i in range(60):
        (tmp_path / "faces" / f"{i:02}.bin").write_bytes(os.urandom(100_000))
    make(tmp_path / "faces", s3.uri("out.parquet"))
    size_bytes = stats(s3.uri("out.parquet")).total.archive_bytes
    assert size_bytes > 6_000_000
    proxy.received_bytes = 0
    report = back(s3.uri("out.parquet", proxy.host), tmp_path / "back", select="31.bin")
    assert report.total.images == 1
    assert proxy.received_bytes < 1_000_000
    proxy.received_bytes = 0
    stats(s3.uri("out.parquet", proxy.host))
    assert proxy.received_bytes < 300_000


# ---- the command line ----


def test_the_command_line_takes_uris_and_says_no_secret(
    faces: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zippy_batch.run.pipeline.Codecs", lambda: CODECS)
    secret = s3.uri("out.parquet").replace("s3://", "s3://KEY1:sesame@")
    runs = [
        ["archive", str(faces), secret, "--workers", "1", "--device", "cpu"],
        ["stats", secret],
        ["verify", secret, "--against", str(faces)],
        ["restore", secret, str(tmp_path / "back"), "--device", "cpu"],
    ]
    said = ""
    for arguments in runs:
        for more in ([], ["--json"]):
            result = CliRunner().invoke(app.app, [*arguments, *more])
            said += result.output
            assert result.exit_code == (2 if more and arguments[0] in ("archive", "restore") else 0), result.output
    result = CliRunner().invoke(app.app, ["stats", s3.uri("x", "127.0.0.1:9").replace("s3://", "s3://KEY1:sesame@")])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    said += result.output + str(content(s3.at("out.parquet")))
    assert "s3://faces-bucket/out.parquet" in said
    assert "KEY1" not in said
    assert "sesame" not in said
