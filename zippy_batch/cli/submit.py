"""`zippy-batch submit`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from zippy_batch.cli.options import as_command, flag
from zippy_batch.cli.outcome import INTERRUPTED, print_text, quoted
from zippy_batch.errors import UsageError


@as_command("if a job was submitted, it goes on")
def submit(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="A command that works on archives, with all it needs."),
    ] = None,
    address: Annotated[
        str | None,
        flag(
            "--address",
            metavar="http://HOST:8265",
            help="The cluster's job server.",
            default="$RAY_API_SERVER_ADDRESS, else this machine",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's id once it works, and leave it to itself.")
    ] = False,
    status: Annotated[str | None, flag("--status", metavar="ID", help="Print the state of a job.")] = None,
    logs: Annotated[str | None, flag("--logs", metavar="ID", help="Follow a job that was submitted before.")] = None,
    stop: Annotated[str | None, flag("--stop", metavar="ID", help="End a job; submitted again, it goes on.")] = None,
) -> None:
    """Run a command on a Ray cluster, through its job server.

    Paths are those that the machines of the cluster see. Versions and paths are checked on every machine; then the
    job's log is shown, and its exit code becomes that of this command. Its report goes to standard output, all else to
    standard error. Ctrl-C ends the showing and not the job.

    Examples:

    \b
      zippy-batch submit --address http://head:8265 -- archive /mnt/faces /mnt/out -q 80
      zippy-batch submit --address http://head:8265 --detach -- restore /mnt/out /mnt/restored
      zippy-batch submit --address http://head:8265 --logs raysubmit_12345
    """
    from zippy_batch.cli import job_client as jobs

    if sum(bool(one) for one in (command, status, logs, stop)) != 1:
        raise UsageError("give either a command after -- or one of --status, --logs and --stop")
    # a wrong command line is refused here as the command itself refuses it
    wanted = jobs.parameters_of(ctx.find_root().command, command) if command else {}
    if command and command[0] not in jobs.COMMANDS:
        raise UsageError(f"submit runs {', '.join(jobs.COMMANDS)}; {command[0]} works without a cluster")
    jobs.Paths.of(wanted)
    address = address or os.environ.get(jobs.ADDRESS_VARIABLE) or jobs.DEFAULT_ADDRESS
    client = jobs.reach(address)
    if status:
        info = jobs.info_of(client, status)
        print_text(f"{info.status}: {info.message}")
    elif stop:
        print_text(jobs.stop(client, stop))
    elif logs:
        _follow(client, logs, address)
    elif command:
        _submit(client, command, wanted, address, detach)


def _submit(client: Any, command: list[str], wanted: dict[str, Any], address: str, detach: bool) -> None:
    from zippy_batch.cli import job_client as jobs

    job = jobs.submit(client, command, wanted)
    if not detach:
        _follow(client, job, address)
    elif code := jobs.wait_until_checked(client, job, _note):
        raise typer.Exit(code)
    else:
        print_text(job)


def _follow(client: Any, job: str, address: str) -> None:
    """Raises Exit with the job's exit code."""
    from zippy_batch.cli import job_client as jobs

    again = f"zippy-batch submit --address {quoted(address)}"
    try:
        raise typer.Exit(jobs.follow(client, job, _write, _note))
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on. To follow it: {again} --logs {job}\nto end it: {again} --stop {job}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _note(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
