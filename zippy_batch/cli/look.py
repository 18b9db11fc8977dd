"""`zippy-batch ls`, `cat` and `show`: what is in an archive, without restoring it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, as_command, declared, flag
from zippy_batch.cli.outcome import print_text
from zippy_batch.config import RestoreOptions, RunOptions
from zippy_batch.errors import OutputExists, UsageError

Where = Annotated[str | None, declared(RestoreOptions, "where")]
Select = Annotated[list[str] | None, declared(RestoreOptions, "select")]


@as_command("nothing was changed")
def ls(
    ctx: typer.Context,
    archive: ArchivePath,
    long: Annotated[
        bool, typer.Option("--long", "-l", help="Bytes of the original, size, codec, PSNR and label of each as well.")
    ] = False,
    where: Where = None,
    select: Select = None,
    sort: Annotated[
        str | None, flag("--sort", metavar="COLUMN", help="Sort by this column; '-psnr' from large to small.")
    ] = None,
    limit: Annotated[int | None, flag("--limit", metavar="N", help="Only the first N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON.")] = False,
) -> None:
    """List the paths of an archive, as tar tf does. No image is read.

    Examples:

    \b
      zippy-batch ls out.parquet
      zippy-batch ls out.parquet -l --sort psnr --limit 20
      zippy-batch ls out.parquet --where "psnr < 30" --json
    """
    import zippy_batch as zb
    from zippy_batch.views import listing

    with zb.open(archive) as opened:
        numbers = listing.chosen(opened, listing.Choice(where, tuple(select or ()), sort, limit))
        if as_json:
            # ASCII: a path may have bytes that are no text, and JSON's escapes keep them
            print_text(json.dumps(listing.table(opened, numbers), indent=2, allow_nan=False))
        elif numbers:
            print_text("\n".join((listing.long_lines if long else listing.short_lines)(opened, numbers)))


@as_command("the rest of the file was not written")
def cat(
    ctx: typer.Context,
    archive: ArchivePath,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path, as ls lists it.")],
    force: Annotated[bool, typer.Option("--force", help="Write to a terminal, too.")] = False,
) -> None:
    """Write one file of an archive, as restore would write it, to standard output.

    Examples:

    \b
      zippy-batch cat out.parquet id_0001/face.jpg > face.jpg
    """
    import zippy_batch as zb
    from zippy_batch.views.listing import file_of

    if sys.stdout.isatty() and not force:
        raise UsageError(
            "a file of an archive is no text for a terminal: redirect it, as in > face.jpg, or say --force"
        )
    with zb.open(archive) as opened:
        data = file_of(opened, path).bytes()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@as_command("nothing was left behind")
def show(
    ctx: typer.Context,
    archive: ArchivePath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="SHEET.png", help="The picture to write.")],
    where: Where = None,
    select: Select = None,
    worst: Annotated[
        int | None, flag("--worst", metavar="N", help="The N pictures with the least PSNR, the worst first.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Most pictures, where --worst is not given.")
    ] = 100,
    columns: Annotated[int | None, flag("--columns", metavar="N", help="Pictures side by side.")] = None,
    overwrite: Annotated[bool | None, declared(RunOptions, "overwrite")] = None,
) -> None:
    """Draw pictures of an archive on one sheet, each with its path and its PSNR.

    Examples:

    \b
      zippy-batch show out.parquet -o sheet.png
      zippy-batch show out.parquet --worst 50 -o worst.png
    """
    import zippy_batch as zb
    from zippy_batch.stores.atomic_file import replacing
    from zippy_batch.views import listing, sheet

    if output.suffix.lower() != ".png":
        raise UsageError(f"{output}: expected a name that ends in .png")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no directory {output.parent}")
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputExists(f"{output} exists; choose another name, or replace a file with --overwrite")
    most, by = (limit, None) if worst is None else (worst, "psnr")
    with zb.open(archive) as opened:
        numbers = listing.chosen(opened, listing.Choice(where, tuple(select or ()), by, most))
        picture = sheet.contact_sheet(opened[numbers], columns)
    with replacing(output) as new:
        picture.save(new, "PNG")
    typer.echo(f"{output}: {len(numbers)} pictures, {picture.width} x {picture.height} pixels")
