"""How a command ends: its report on standard output, one message on standard error, an exit code."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol

import typer

from zippy_batch.errors import OptionError, WriteError, ZippyError

INTERRUPTED = 130


class Printable(Protocol):
    """A report: of a run, of training, of anything else that a command does."""

    @property
    def exit_code(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...
    def lines(self, columns: int | None = None) -> list[str]: ...


@contextmanager
def outcome(ctx: typer.Context, when_interrupted: str, flags: Mapping[str, str]) -> Iterator[None]:
    """Turns what is raised inside into one message on standard error and an exit code.

    `flags` are those of options whose flag is not --their-name, for messages that name them.
    """
    try:
        yield
    except (typer.Exit, typer.TyperException):
        raise
    except KeyboardInterrupt:
        _show_traceback(ctx)
        typer.echo(f"interrupted; {when_interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except ZippyError as error:
        _show_traceback(ctx)
        said = error.as_flags(flags) if isinstance(error, OptionError) else error
        typer.echo(f"error: {said}", err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        # the machine said no: no space left, no permission, a path that is too long
        _show_traceback(ctx)
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"error: {error.strerror or error}{where}", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        _show_traceback(ctx)
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        typer.echo(f"error: {what}", err=True)
        if not ctx.obj:
            again = f"zippy-batch --traceback {ctx.info_name} ..."
            typer.echo(f"unexpected error; for a traceback run: {again}", err=True)
        raise typer.Exit(1) from None


def _show_traceback(ctx: typer.Context) -> None:
    if ctx.obj:
        traceback.print_exc()


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Keeps standard output free for the report: Ray prints there when a worker or a node dies, and has no switch."""
    with redirect_stdout(sys.stderr):
        yield


def print_report(report: Printable, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        print_text(json_text(report.to_dict()))
    elif not quiet or report.exit_code:
        print_text("\n".join(report.lines(terminal_columns())))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def print_reports(reports: Sequence[Printable], as_json: bool, quiet: bool = False) -> None:
    """Print one report or several, as `print_report` does: then JSON is a list."""
    if len(reports) == 1:
        print_report(reports[0], as_json, quiet)
    elif as_json:
        print_text(json_text([report.to_dict() for report in reports]))
    elif not quiet:
        print_text("\n".join(line for report in reports for line in report.lines(terminal_columns())))


def terminal_columns() -> int | None:
    """Width of the terminal that standard output is, or what COLUMNS says; None where there is neither."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return shutil.get_terminal_size().columns


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def print_text(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        # the reader has seen enough, as in `zippy-batch stats ARCHIVE | head`, which says nothing about the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise WriteError(f"the report cannot be written to standard output: {error.strerror}") from error


def hint(text: str) -> None:
    """A line for people, who watch a terminal."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def quoted(path: object) -> str:
    return shlex.quote(str(path))
