"""`zippy-batch submit`: what it refuses before anything is sent, how it follows a job, and a real job server."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from tiny import tiny_model
from typer.testing import CliRunner, Result

from zippy_batch import __version__
from zippy_batch.cli import job_client
from zippy_batch.cli.app import app
from zippy_batch.cli.job_client import CHECKED, Paths, follow, framed, info_of, parameters_of, wait_until_checked
from zippy_batch.cli.job_entry import check_cluster
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import UsageError, WorkerError
from zippy_batch.run.pipeline import archive


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, arguments)])


# before anything is sent


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "archive", "faces", "/out"], "faces: give an absolute path"),
        (["--", "archive", "/faces", "/out", "--model", "mine.safetensors"], "mine.safetensors: give an absolute path"),
        (["--", "stats", "/out"], "dedupe, train; stats works without a cluster"),
        (["--", "erase", "s3://bucket/out", "--where", "psnr < 1"], "say by --receipt where the receipt goes"),
        (["--", "merge", "/a", "b", "-o", "/out"], "b: give an absolute path"),
        ([], "give either a command after -- or one of"),
        (["--status", "a", "--", "verify", "/out"], "give either a command after -- or one of"),
        (["--address", "head:8265", "--logs", "a"], "the job server speaks HTTP; give http://HOST:8265"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_wrong_command_line_is_refused_here_and_not_on_the_cluster() -> None:
    result = run("--", "archive", "/faces", "/out", "--qualty", 3)
    assert result.exit_code == 2
    assert "No such option: --qualty" in result.stderr


def parsed(line: list[str]) -> dict[str, Any]:
    return parameters_of(typer.main.get_command(app), line)


def test_paths_are_those_that_a_command_reads_and_writes() -> None:
    line = ["archive", "/faces", "/out", "--config", "/c.toml", "--model", "/m.safetensors", "--exact-model", "exact"]
    assert Paths.of(parsed(line)) == Paths(("/faces", "/m.safetensors", "/c.toml"), ("/out",))
    assert Paths.of(parsed(["archive", "s3://bucket/faces", "/out"])) == Paths((), ("/out",))
    assert Paths.of(parsed(["restore", "/out", "/back"])) == Paths(("/out",), ("/back",))
    assert Paths.of(parsed(["verify", "/out", "--against", "/faces"])) == Paths(("/out", "/faces"), ())
    assert Paths.of(parsed(["append", "/new", "/out"])) == Paths(("/new", "/out"), ())
    assert Paths.of(parsed(["merge", "/a", "/b", "-o", "/c"])) == Paths(("/a", "/b"), ("/c",))
    assert Paths.of(parsed(["select", "/a", "--split", "2", "-o", "/c"])) == Paths(("/a",), ("/c",))
    assert Paths.of(parsed(["erase", "/a", "--paths", "/p", "--receipt", "/r"])) == Paths(("/a", "/p"), ("/r",))
    assert Paths.of(parsed(["diff", "/a", "/b", "--json"])) == Paths(("/a", "/b"), ())
    assert Paths.of(parsed(["train", "/a", "/b", "-o", "/m", "--from", "faces"])) == Paths(("/a", "/b"), ("/m",))


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (["append", "/new", "/out"], "append --address auto /new /out"),
        (["append", "--address", "head:6379", "/new", "/out"], "append --address head:6379 /new /out"),
        (["merge", "/a", "/b", "-o", "/c"], "merge /a /b -o /c"),
    ],
)
def test_only_what_spreads_over_a_cluster_is_told_to_join_it(line: list[str], sent: str) -> None:
    jobs = Jobs(["SUCCEEDED"])
    job_client.submit(jobs, line, parsed(line))
    assert jobs.sent[0].endswith(sent)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_an_address_where_nothing_answers_is_said_so() -> None:
    result = run("--address", f"http://127.0.0.1:{free_port()}", "--", "verify", "/out")
    assert result.exit_code == 2
    assert "expected the job server of a Ray cluster there, by default on port 8265" in result.stderr


def test_an_address_where_something_else_answers_is_said_so() -> None:
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run("--address", f"http://127.0.0.1:{server.server_address[1]}", "--logs", "a")
        server.shutdown()
    assert result.exit_code == 2
    assert "is not the job server of a Ray cluster" in result.stderr


def test_another_version_on_the_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match=rf"is 9\.9 where the job comes from and {__version__} on the cluster"):
        check_cluster("9.9", Paths((), ()))


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="Ray's client is not installed here")
def test_a_server_that_wants_a_token_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "Unauthorized")

        def log_message(self, *rest: object) -> None:
            pass

    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UsageError, match="wants a token, and takes none from here"):
            job_client.reach(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


# following a job


class State(str):
    def is_terminal(self) -> bool:
        return self not in ("PENDING", "RUNNING")


@dataclass
class Jobs:
    """A job server with one job, whose state moves on each time that it is asked for."""

    states: list[str]
    log: str = f"{CHECKED} 3 machines\nworked\n"
    code: int | None = 0
    breaks: int = 0
    """Times that following the log ends in the middle."""
    sent: list[str] = field(default_factory=list)

    def get_job_info(self, job: str) -> Any:
        if job != "known":
            raise RuntimeError("Request failed with status code 404")
        return SimpleNamespace(status=self.states[0], message="as it is", driver_exit_code=self.code)

    def get_job_status(self, job: str) -> State:
        return State(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def get_job_logs(self, job: str) -> str:
        return self.log

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield self.log[:10]
        if self.breaks:
            self.breaks -= 1
            raise OSError("broken")
        yield self.log[10:]

    def submit_job(self, entrypoint: str) -> str:
        self.sent.append(entrypoint)
        return "known"

    def stop_job(self, job: str) -> bool:
        self.states = ["RUNNING", "STOPPED"]
        return True


def ignore(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "POLL_S", 0.01)


@pytest.mark.parametrize(
    ("jobs", "code"),
    [
        (Jobs(["SUCCEEDED"]), 0),
        (Jobs(["RUNNING", "SUCCEEDED"], breaks=3), 0),
        (Jobs(["FAILED"], code=2), 2),
        (Jobs(["FAILED"], code=-9), 1),
        (Jobs(["FAILED"], code=None), 1),
        (Jobs(["STOPPED"], code=None), 130),
    ],
    ids=["done", "broken connection", "usage", "killed", "lost", "stopped"],
)
def test_the_log_is_shown_once_and_the_exit_code_is_the_jobs_own(jobs: Jobs, code: int) -> None:
    noted: list[str] = []
    assert follow(jobs, "known", noted.append, noted.append) == code
    assert "".join(noted) == jobs.log


def test_the_report_of_a_job_is_told_from_all_else_in_its_log() -> None:
    """Ray writes there too, and the log comes in pieces."""
    report = '{\n "rows": 3\n}\n'
    log = f"2026-01-01 INFO worker.py: Connecting\n{framed(report)}INFO: the end"
    written: list[str] = []
    noted: list[str] = []
    assert follow(Jobs(["RUNNING", "SUCCEEDED"], log=log, breaks=2), "known", written.append, noted.append) == 0
    assert json.loads("".join(written)) == {"rows": 3}
    assert "".join(noted) == "2026-01-01 INFO worker.py: Connecting\nINFO: the end"


def test_a_job_that_never_comes_to_zippy_batch_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(Jobs(["FAILED"], log="No module named zippy_batch\n", code=1), "known", ignore, ignore) == 1
    assert "is it installed on the cluster, for the `python` that its machines find first?" in capsys.readouterr().err


def test_a_job_server_that_is_lost_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Jobs):
        def get_job_status(self, job: str) -> State:
            raise ConnectionError("gone")

    monkeypatch.setattr(job_client, "LOST_S", 0.1)
    with pytest.raises(WorkerError, match=r"does not answer any more \(gone\); the job known goes on"):
        follow(Lost(["RUNNING"]), "known", ignore, ignore)


def test_an_unknown_job_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there is no job other"):
        info_of(Jobs(["RUNNING"]), "other")


def test_detached_means_after_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []
    assert wait_until_checked(Jobs(["PENDING", "RUNNING"]), "known", written.append) is None
    assert not written
    refused = Jobs(["PENDING", "FAILED"], log="error: /faces is not there\n", code=2)
    assert wait_until_checked(refused, "known", written.append) == 2
    assert written == [refused.log]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    found = Jobs(["RUNNING", "SUCCEEDED"])
    monkeypatch.setattr(job_client, "reach", lambda address: found)
    return found


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("archive /a /b -q 80", "archive --address auto /a /b -q 80"),
        ("archive '/a b' /c", "archive --address auto '/a b' /c"),
        ("verify /a --address head:6379", "verify /a --address head:6379"),
    ],
)
def test_the_job_joins_the_cluster_that_it_runs_on(line: str, sent: str, jobs: Jobs) -> None:
    import shlex

    assert run("--", *shlex.split(line)).exit_code == 0
    assert jobs.sent == [f"python -m zippy_batch.cli.job_entry {__version__} {sent}"]


def test_a_cluster_that_is_just_starting_is_waited_for(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RuntimeError("No available agent to submit job"), RuntimeError("No available agent"), None])
    take = jobs.submit_job

    def submit_job(entrypoint: str) -> str:
        error = next(answers)
        if error:
            raise error
        return take(entrypoint)

    monkeypatch.setattr(jobs, "submit_job", submit_job)
    assert run("--detach", "--", "verify", "/a").stdout == "known\n"
    answers = iter([RuntimeError("the disk is full")])
    refused = run("--detach", "--", "verify", "/a")
    assert refused.exit_code == 1
    assert "the cluster takes no job: the disk is full" in refused.stderr


def test_detach_status_and_stop_print_one_line(jobs: Jobs) -> None:
    assert run("--detach", "--", "verify", "/a").stdout == "known\n"
    jobs.states = ["RUNNING"]
    assert run("--status", "known").stdout == "RUNNING: as it is\n"
    assert run("--stop", "known").stdout == "STOPPED\n"


def test_ctrl_c_leaves_the_job_and_says_how_to_end_it(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*rest: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_client, "follow", interrupted)
    result = run("--address", "http://head:8265", "--", "verify", "/a")
    assert result.exit_code == 130
    assert "the job goes on" in result.stderr
    assert "zippy-batch submit --address http://head:8265 --stop known" in result.stderr


# a real job server


needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason="Ray's dashboard is not installed here (the extra `submit`)"
)


HEAD = """
import sys
from ray.cluster_utils import Cluster

port, agent_port = map(int, sys.argv[1:])
options = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20, "dashboard_port": port}
# other tests may have a cluster of theirs, whose agent has the usual port
options["dashboard_agent_listen_port"] = agent_port
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": True})
print("up", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def environment() -> dict[str, str]:
    """Without what Ray, started in this process by other tests, has left: it turns tokens on."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of the job server of a cluster of one machine, whose `python` is this one."""
    port = free_port()
    start = [sys.executable, "-c", HEAD, str(port), str(free_port())]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(start, env=environment(), **pipes) as cluster:
        assert cluster.stdout
        assert any(line == "up\n" for line in cluster.stdout)
        yield f"http://127.0.0.1:{port}"
        cluster.communicate()


def command(head: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "zippy_batch", "submit", "--address", head, *map(str, arguments)]


def done(head: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(head, *arguments), capture_output=True, text=True, timeout=300, check=False, env=environment()
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    path.write_bytes(tiny_model().data)
    return path


@needs_dashboard
def test_a_job_makes_the_archive_that_one_process_makes(
    head: str, model: Path, drawn_faces: Path, tmp_path: Path
) -> None:
    flags = ["--model", model, "--no-exact", "--shard-size", 16, "--device", "cpu", "--json"]
    ended = done(head, "--", "archive", drawn_faces, tmp_path / "out.parquet", *flags)
    assert ended.returncode == 0, ended
    assert f"{CHECKED} 1 machine: zippy-batch {__version__}" in ended.stderr
    run = json.loads(ended.stdout)["run"]
    assert run["images"] == 40
    assert run["workers"] >= 1
    options = ArchiveOptions(model=str(model), exact="never", shard_size=16, device="cpu")
    archive(drawn_faces, tmp_path / "here.parquet", options, RunOptions(workers=1))
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()


@needs_dashboard
def test_paths_that_the_machines_do_not_see_are_named_and_nothing_is_done(
    head: str, drawn_faces: Path, tmp_path: Path
) -> None:
    ended = done(head, "--", "archive", tmp_path / "faces", tmp_path / "nowhere" / "out")
    assert ended.returncode == 2, ended
    assert f"{tmp_path}/faces is not there (on 1 of 1 machines: " in ended.stderr
    assert f"out cannot be made, there is no directory {tmp_path}/nowhere" in ended.stderr
    assert not list(tmp_path.iterdir())


@needs_dashboard
def test_a_job_outlives_the_one_who_follows_it_and_ends_when_it_is_stopped(
    head: str, model: Path, drawn_faces: Path, tmp_path: Path
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    drawn = sorted(drawn_faces.iterdir())
    for i in range(20_000):  # more than it gets done before it is stopped
        os.link(drawn[i % len(drawn)], faces / f"{i}.jpg")
    started = command(head, "--", "archive", faces, tmp_path / "out", "--model", model, "--device", "cpu")
    with subprocess.Popen(
        started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as follower:
        assert follower.stdout
        assert follower.stderr
        for line in follower.stderr:
            if line.startswith(CHECKED):
                break
        follower.send_signal(signal.SIGINT)
        rest = follower.stderr.read()
    assert follower.returncode == 130
    job = rest.split("--stop ")[1].split()[0]
    assert done(head, "--status", job).stdout.startswith("RUNNING")
    assert done(head, "--stop", job).stdout == "STOPPED\n"
    followed = done(head, "--logs", job)
    assert followed.returncode == 130
    assert "submit the same again to go on" in followed.stderr
    assert CHECKED in followed.stderr
    assert not (tmp_path / "out").exists()
