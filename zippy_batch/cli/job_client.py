"""Sends a command to a Ray cluster as a job, and follows it there.

    here             reach the job server -> submit -> print the job's log -> leave with its exit code
    on the cluster   `job_entry`: versions, and the paths as every machine sees them -> the command

zippy-batch must be installed on the cluster: nothing is uploaded. A job that was submitted goes on when the one who
follows it stops.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from zippy_batch import __version__
from zippy_batch.config import LABELS, builtin_presets
from zippy_batch.errors import UsageError, WorkerError
from zippy_batch.stores.object_path import is_uri

COMMANDS = ("archive", "restore", "verify", "append", "merge", "select", "erase", "diff", "dedupe", "train")
"""Those that work on a cluster, or in a process of it, where the data is."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Environment variable that Ray's own tools read as well."""
CHECKED = "zippy-batch: checked"
"""Begins the line that a job writes when it has found nothing wrong and starts to work."""
REPORT_BEGINS, REPORT_ENDS = "zippy-batch: report", "zippy-batch: end of the report"
"""Lines around the report in a job's log."""
ANSWER_S = 15.0
"""How long the job server has for an answer."""
AGENT_S = 60.0
"""How long a cluster that has just started has until it takes jobs."""
POLL_S = 0.5
LOST_S = 60.0
"""How long the job server may be gone before its log is given up."""

_NEEDED = (
    "source",
    "sources",
    "archive",
    "archives",
    "a",
    "b",
    "against",
    "reference",
    "exclude_from",
    "paths",
    "sign",
)
_MADE = ("output", "destination", "receipt")
_MODELS = ("model", "exact_model", "start")


@dataclass(frozen=True)
class Paths:
    """The paths in a command, as the machines of the cluster see them."""

    needed: tuple[str, ...]
    """Must be there."""
    made: tuple[str, ...]
    """Must have a directory to be made in."""

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> Paths:
        """Raises UsageError for relative ones: the directory that a job starts in is not known here. URIs are left out:
        the command itself connects to their stores."""
        needed = [path for name in _NEEDED for path in _listed(parameters.get(name))]
        needed += [name for model in _MODELS for name in _listed(parameters.get(model)) if _is_model_file(name)]
        needed += [name for name in _listed(parameters.get("config")) if name not in builtin_presets()]
        needed += [name for name in _listed(parameters.get("labels")) if name not in LABELS]
        made = [path for name in _MADE for path in _listed(parameters.get(name))]
        if "receipt" in parameters and not (made or parameters["dry_run"]) and is_uri(str(parameters["archive"])):
            raise UsageError("say by --receipt where the receipt goes: the directory that a job starts in is not known")
        for path in (*needed, *made):
            if not os.path.isabs(path):
                raise UsageError(f"{path}: give an absolute path, as the machines of the cluster see it")
        return Paths(tuple(needed), tuple(made))


def parameters_of(group: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """The parameters in a command line of zippy-batch, by name, for the group of its commands.

    Raises what the command itself raises for a wrong one.
    """
    name, *rest = arguments
    with group.make_context("zippy-batch", [name, *rest]) as ctx:
        name, found, rest = group.resolve_command(ctx, [name, *rest])
        return dict(found.make_context(name, rest, parent=ctx).params)


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in values if not is_uri(str(one))]


def _is_model_file(name: str) -> bool:
    return name.endswith(".safetensors") or os.sep in name


def reach(address: str) -> Any:
    """Ray's client for the job server at this address. Raises UsageError."""
    if not address.startswith(("http://", "https://")):
        raise UsageError(
            f"--address {address}: the job server speaks HTTP; give http://HOST:8265, the address of the dashboard "
            f"(port 6379 is the cluster's own, which only its machines join)"
        )
    theirs = _ray_version_at(address)
    if importlib.util.find_spec("aiohttp") is None:
        raise UsageError("submit needs the client of Ray's job server; pip install 'zippy-batch[submit]' brings it")
    if theirs is None:
        # Ray reads this when it is loaded, and then shows the token that it finds
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.job_submission import JobSubmissionClient

    if theirs not in (None, ray.__version__):
        say(f"note: Ray is {ray.__version__} here and {theirs} on the cluster, whose own counts")
    # it would tell, among the job's own lines, that the log has ended
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    # else the environment would win over the address that was asked for
    os.environ[ADDRESS_VARIABLE] = address
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        if theirs is not None:
            raise
        raise UsageError(
            f"{address} wants a token, and takes none from here: have the cluster's in RAY_AUTH_TOKEN or in "
            f"~/.ray/auth_token ({type(error).__name__})"
        ) from error


def _ray_version_at(address: str) -> str | None:
    """None where it is not told to those who show no token, as Ray's own client does where it has one."""
    import requests

    try:
        answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S)
        if answer.status_code in (401, 403):
            return None
        answer.raise_for_status()
        return str(answer.json()["ray_version"])
    except requests.exceptions.ConnectionError as error:
        raise UsageError(
            f"nothing answers at {address}: expected the job server of a Ray cluster there, by default on port 8265 of "
            f"its head. Is the address right, does the head run with its dashboard (ray[default]), and does the "
            f"network let this machine in?"
        ) from error
    except requests.exceptions.Timeout as error:
        raise UsageError(f"{address} does not answer within {ANSWER_S:g} s; is it the head's dashboard?") from error
    except (requests.exceptions.RequestException, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"what answers at {address} is not the job server of a Ray cluster: {error}") from error


def submit(client: Any, arguments: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """Id of a new job for a command line of zippy-batch with these parameters. It joins a cluster of its own choice or
    gets this one, if it takes any."""
    name, *rest = arguments
    takes_one = "address" in parameters and parameters["address"] is None
    command = [name, "--address", "auto", *rest] if takes_one else [name, *rest]
    say(f"here: zippy-batch {__version__}, {platform_text()}")
    entrypoint = shlex.join(["python", "-m", "zippy_batch.cli.job_entry", __version__, *command])
    until = time.monotonic() + AGENT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise WorkerError(f"the cluster takes no job: {error}") from error
            time.sleep(POLL_S)


def follow(client: Any, job: str, write: Callable[[str], None], note: Callable[[str], None]) -> int:
    """Writes the report of the job and notes the rest of its log as it grows, and returns the exit code of the job when
    it has ended.

    Raises WorkerError when the job server is lost for good.
    """
    info_of(client, job)
    log = _Log(write, note)
    while True:
        # a connection that breaks says nothing about the job, and asking for the log again serves as well
        with suppress(Exception):
            asyncio.run(_tail(client, job, log))
        ended, text = _progress(client, job)
        log.catch_up(text)
        if ended:
            log.finish()
            return _ended(client, job, log.checked)
        time.sleep(POLL_S)


def _progress(client: Any, job: str) -> tuple[bool, str]:
    """Whether the job has ended, and its log so far; the job server may be gone for a while."""
    until = time.monotonic() + LOST_S
    while True:
        try:
            return client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        except Exception as error:
            if time.monotonic() > until:
                raise WorkerError(
                    f"the job server does not answer any more ({error}); the job {job} goes on if its cluster does: "
                    f"follow it with --logs {job}, or submit the same again to go on where it stopped"
                ) from error
        time.sleep(POLL_S)


def wait_until_checked(client: Any, job: str, note: Callable[[str], None]) -> int | None:
    """None once the job works; its exit code, when it has ended without coming so far, after noting its log."""
    while True:
        ended, log = _progress(client, job)
        if CHECKED in log:
            return None
        if ended:
            note(log)
            return _ended(client, job, checked=False)
        time.sleep(POLL_S)


def stop(client: Any, job: str) -> str:
    """State of the job after it has been told to stop."""
    info_of(client, job)
    client.stop_job(job)
    until = time.monotonic() + LOST_S
    while not (state := client.get_job_status(job)).is_terminal() and time.monotonic() < until:
        time.sleep(POLL_S)
    return str(state)


def info_of(client: Any, job: str) -> Any:
    """Raises UsageError for a job that the server does not know."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise UsageError(f"there is no job {job} on this cluster; its dashboard lists those there are") from error


def framed(report: str) -> str:
    """What a job prints of the report of its command: a log is one stream, in which Ray writes as well."""
    return f"{REPORT_BEGINS}\n{report.rstrip()}\n{REPORT_ENDS}\n" if report else ""


class _Log:
    """What was written of a log, so that a connection that is made again repeats nothing."""

    def __init__(self, write: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._write, self._note = write, note
        self.written, self.checked = 0, False
        self._is_report, self._rest = False, ""

    def catch_up(self, text: str) -> None:
        self.checked = self.checked or CHECKED in text
        if len(text) > self.written:
            *lines, self._rest = (self._rest + text[self.written :]).splitlines(keepends=True)
            if self._rest.endswith("\n"):
                lines, self._rest = [*lines, self._rest], ""
            self.written = len(text)
            for line in lines:
                self._pass_on(line)

    def finish(self) -> None:
        """Pass on what a job that has ended left without the end of a line."""
        if self._rest:
            self._pass_on(self._rest)
        self._rest = ""

    def _pass_on(self, line: str) -> None:
        if line.rstrip() in (REPORT_BEGINS, REPORT_ENDS):
            self._is_report = line.rstrip() == REPORT_BEGINS
        else:
            (self._write if self._is_report else self._note)(line)


async def _tail(client: Any, job: str, log: _Log) -> None:
    text = ""
    async for piece in client.tail_job_logs(job):
        text += piece
        log.catch_up(text)


def _ended(client: Any, job: str, checked: bool) -> int:
    """The command's own exit code where it has one; 130 for a job that was stopped."""
    info = info_of(client, job)
    state = str(getattr(info.status, "value", info.status))
    if state == "SUCCEEDED":
        return 0
    if state == "STOPPED":
        say(f"the job {job} was stopped; submit the same again to go on where it stopped")
        return 130
    code = info.driver_exit_code
    if not checked and code != UsageError.exit_code:
        say(
            "the job ended before zippy-batch had begun; is it installed on the cluster, for the `python` that its "
            f"machines find first? {info.message or ''}"
        )
    elif code is None or code < 0:
        say(f"the job {job} did not end by itself: {info.message}; submit the same again to go on where it stopped")
    return code if code is not None and code > 0 else 1


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def platform_text() -> str:
    import ray

    return f"Ray {ray.__version__}, Python {platform.python_version()}"
