"""The command line: parse, call, print, exit code.

A module holds a command or two; `options` makes flags of the options that `config` declares. Nothing heavy is imported
until a command runs, so that `--help` answers at once. The report of a command goes to standard output, as a table or
as JSON; progress, hints and errors go to standard error.

Exit codes: 0 success, 1 damage or failure, 2 usage, 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import atexit
import gc
import os
from importlib import metadata
from typing import Annotated

import typer

from zippy_batch.cli.append import append
from zippy_batch.cli.archive import archive
from zippy_batch.cli.compare import compare
from zippy_batch.cli.diff import dedupe, diff
from zippy_batch.cli.erase import erase
from zippy_batch.cli.export import export
from zippy_batch.cli.look import cat, ls, show
from zippy_batch.cli.merge import merge, select
from zippy_batch.cli.options import PlainCommand
from zippy_batch.cli.page import report, serve
from zippy_batch.cli.restore import restore
from zippy_batch.cli.submit import submit
from zippy_batch.cli.train import models, train
from zippy_batch.cli.verify import stats, verify

app = typer.Typer(
    name="zippy-batch",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    archive,
    restore,
    stats,
    verify,
    append,
    merge,
    select,
    erase,
    diff,
    dedupe,
    export,
    ls,
    cat,
    show,
    report,
    serve,
    compare,
    train,
    models,
    submit,
):
    app.command(cls=PlainCommand)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zippy-batch {metadata.version('zippy-batch')}")
        raise typer.Exit


@app.callback()
def _program(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    full_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the program an error came from.")
    ] = False,
) -> None:
    """Turn a directory of face images into one small Parquet archive, and back, with known quality.

    Examples:

    \b
      zippy-batch archive ./faces out.parquet
      zippy-batch verify out.parquet --against ./faces
      zippy-batch restore out.parquet ./restored
    """
    ctx.obj = full_traceback


def main() -> None:
    # a switch of numba for debugging: what is compiled here relies on the integers that compiled code has
    os.environ.pop("NUMBA_DISABLE_JIT", None)
    # at the end all memory goes back at once; looking through it first for what can go takes a tenth of a second
    atexit.register(gc.freeze)
    app()
