"""`zippy-batch train` and `zippy-batch models`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import Json, Quiet, as_command
from zippy_batch.cli.outcome import json_text, print_report, print_text, reserved_stdout
from zippy_batch.config import RunOptions, TrainOptions

_WORKERS = (
    "Processes that train together, through Ray Train: 1, or with --address one for each GPU or for each 4 CPUs of the "
    "cluster."
)


@as_command("the same command goes on where it stopped", help={"workers": _WORKERS})
def train(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Directories of images, lists of paths (a line each), or archives."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Model to write, NAME.safetensors.")],
    options: TrainOptions,
    run: RunOptions,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the run that is there and begin anew.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit a model to your own images, and say what it saves.

    The best model so far is written early and again as it gets better; an interrupted run goes on when the same command
    is given again, and a finished one with more --minutes.

    Examples:

    \b
      zippy-batch train ./faces -o mine.safetensors --from faces --minutes 20
      zippy-batch train ./faces -o mine-exact.safetensors --codec exact --from exact --minutes 20
      zippy-batch train ./photos ./more -o new.safetensors --sizes own,64x64 --minutes 600
      zippy-batch archive ./faces out.parquet --model mine.safetensors
    """
    import zippy_batch as zb

    def watch(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    with reserved_stdout():
        report = zb.train(sources, output, options, run, watch, restart)
    print_report(report, as_json, quiet)


@as_command("nothing was changed")
def models(
    ctx: typer.Context,
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="NAME|FILE", help="Only these, among them model files of yours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in models, or say what is in model files.

    Examples:

    \b
      zippy-batch models
      zippy-batch models mine.safetensors --json
      zippy-batch archive ./faces out.parquet --model faces
    """
    import zippy_batch as zb

    summaries = zb.models(wanted or None)
    if as_json:
        print_text(json_text([asdict(summary) for summary in summaries]))
    else:
        print_text("\n".join(line for summary in summaries for line in summary.lines()))
