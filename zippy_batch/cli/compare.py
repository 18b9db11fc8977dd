"""`zippy-batch compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import ProgressFlag, Quiet, as_command, declared, flag
from zippy_batch.cli.outcome import json_text, print_text, terminal_columns
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import OutputExists, UsageError


@as_command("nothing was written")
def compare(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Directory of images; nothing in it is changed.")],
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Files to look at, spread evenly over SOURCE; 0 takes all.")
    ] = 200,
    qualities: Annotated[
        str | None,
        flag("--qualities", metavar="Q,Q", help="Of zippy-batch, 1..100.", default="25,40,55,65,75,85,95"),
    ] = None,
    only: Annotated[
        str | None, flag("--only", metavar="NAME,NAME", help="Only these contenders, by their names in the table.")
    ] = None,
    skip: Annotated[str | None, flag("--skip", metavar="NAME,NAME", help="All contenders but these.")] = None,
    model: Annotated[str | None, declared(ArchiveOptions, "model", help="Model of the lossy codec.")] = None,
    device: Annotated[str | None, declared(ArchiveOptions, "device")] = None,
    json_file: Annotated[Path | None, flag("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[Path | None, flag("--plot", metavar="FILE.png", help="Draw quality over bytes.")] = None,
    sheet: Annotated[
        Path | None,
        flag("--sheet", metavar="FILE.png", help="Lay faces side by side, as each gives them back at equal bytes."),
    ] = None,
    overwrite: Annotated[bool | None, declared(RunOptions, "overwrite")] = None,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
) -> None:
    """Compare with JPEG, WebP, AVIF and others, on your own images.

    Each is charged for loose files and for one Parquet file under zstd; an archive is charged whole. Without --json,
    --plot and --sheet nothing is written but the table.

    Examples:

    \b
      zippy-batch compare ./faces
      zippy-batch compare ./faces --only jpeg,avif,zippy-batch --qualities 40,60,75
      zippy-batch compare ./faces --limit 500 --plot curves.png --sheet faces.png --json figures.json
    """
    from zippy_batch.cli.progress import Shown, showing
    from zippy_batch.compare import charts
    from zippy_batch.compare.measure import QUALITIES, CompareOptions
    from zippy_batch.compare.measure import compare as measured

    shown = Shown.of(progress, quiet)
    options = CompareOptions(
        limit=limit,
        qualities=_numbers(qualities) if qualities else QUALITIES,
        only=_words(only),
        skip=_words(skip),
        model=model or ArchiveOptions.model,
        device=device or ArchiveOptions.device,
        faces=5 if sheet else 0,
    )
    _refuse_unwritable([path for path in (json_file, plot, sheet) if path], bool(overwrite))
    if plot:
        charts.require_matplotlib()
    with showing("compare", shown) as watch:
        found = measured(source, options, watch)
    if not shown.is_quiet:
        print_text("\n".join(found.lines(terminal_columns())))
    if json_file:
        json_file.write_text(json_text(found.to_dict()) + "\n")
    if plot:
        plot.write_bytes(charts.plot(found))
    if sheet:
        sheet.write_bytes(charts.sheet(found))


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise UsageError(f"expected numbers with commas between them, such as 40,60,75, not {text!r}") from None


def _refuse_unwritable(paths: list[Path], overwrite: bool) -> None:
    """Raises UsageError for files that could not be written at the end of a long run, or would replace another."""
    for i, path in enumerate(paths):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: {'is a directory' if path.is_dir() else f'{path.parent} cannot be written to'}")
        if path in paths[:i]:
            raise UsageError(f"{path}: named twice as an output")
        if path.exists() and not overwrite:
            raise OutputExists(f"{path} exists; choose another name, or replace it with --overwrite")
