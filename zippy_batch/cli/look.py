"""`zippy-batch ls` and `zippy-batch cat`: what is in an archive, without restoring it."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, as_command, declared, flag
from zippy_batch.cli.outcome import print_text
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import UsageError

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
    from zippy_batch import dataset
    from zippy_batch.views import listing

    with dataset.open(archive) as opened:
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
    from zippy_batch import dataset
    from zippy_batch.views.listing import file_of

    if sys.stdout.isatty() and not force:
        raise UsageError(
            "a file of an archive is no text for a terminal: redirect it, as in > face.jpg, or say --force"
        )
    with dataset.open(archive) as opened:
        data = file_of(opened, path).bytes()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
