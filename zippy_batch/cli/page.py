"""`zippy-batch report` and `zippy-batch serve`: an archive to look at in a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, as_command, declared, flag
from zippy_batch.cli.outcome import print_text
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import ArchiveError, OutputExists, UsageError


@as_command("nothing was left behind")
def report(
    ctx: typer.Context,
    archive: ArchivePath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PAGE.html", help="The page to write.")],
    against: Annotated[
        str | None,
        flag("--against", metavar="DIR", help="The originals, to show beside the worst pictures."),
    ] = None,
    compare: Annotated[
        Path | None,
        flag("--compare", metavar="FIGURES.json", help="What compare --json wrote, to draw as curves."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", help="How many of the worst pictures, and of random ones.")
    ] = 24,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Chooses the random pictures.")] = 0,
    max_mb: Annotated[
        float, typer.Option("--max-mb", metavar="MB", help="Most megabytes of the page; pictures are left out for it.")
    ] = 5.0,
    device: Annotated[str | None, declared(ArchiveOptions, "device")] = None,
    overwrite: Annotated[bool | None, declared(RunOptions, "overwrite")] = None,
) -> None:
    """Write one page of HTML about an archive: sizes, quality, the worst pictures and random ones.

    It needs no network and no other file, and holds pictures from the archive: give it to whom you would give those.

    Examples:

    \b
      zippy-batch report out.parquet -o report.html
      zippy-batch report out.parquet -o report.html --against ./faces
    """
    from zippy_batch.stores.atomic_file import replacing
    from zippy_batch.views.listing import damage_text
    from zippy_batch.views.report_page import PageOptions, report_page

    _refuse_output(output, bool(overwrite))
    options = PageOptions(images, seed, against, compare, max_mb)
    page = report_page(archive, options, device or ArchiveOptions.device)
    data = page.text.encode()
    with replacing(output) as new:
        new.write_bytes(data)
    typer.echo(f"{output}: {len(data) / 1e6:.2f} MB")
    if page.damage:
        raise ArchiveError(damage_text(archive, "page", page.damage))


def _refuse_output(output: Path, overwrite: bool) -> None:
    """Raises UsageError for what could not be written at the end, and for anything that is there but a page."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output}: expected a name that ends in .html")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no directory {output.parent}")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output}: {'is a directory' if output.is_dir() else 'its directory cannot be written to'}")
    if output.exists() and not overwrite:
        raise OutputExists(f"{output} exists; choose another name, or replace it with --overwrite")


@as_command("nothing was changed")
def serve(
    ctx: typer.Context,
    archive: ArchivePath,
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Port of this machine to listen on; 0 takes a free one.")
    ] = 8765,
    device: Annotated[str | None, declared(ArchiveOptions, "device")] = None,
) -> None:
    """Show an archive in the browser of this machine: page through it, filter, sort by quality.

    Listens on 127.0.0.1 alone, writes nothing, and runs until Ctrl-C.

    Examples:

    \b
      zippy-batch serve out.parquet
      zippy-batch serve out.parquet --port 9000
    """
    from zippy_batch.views.server import serve_gallery

    def say(line: str, damage: str | None) -> None:
        if damage is not None:
            typer.echo(damage, err=True)
        print_text(line)

    serve_gallery(archive, port, device or ArchiveOptions.device, say)
