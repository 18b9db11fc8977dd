"""`zippy-batch ls`, `cat` and `show`: what is in an archive, without restoring it."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zippy_batch.cli.options import ArchivePath, as_command, declared, flag
from zippy_batch.cli.outcome import print_text
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ArchiveError, OutputExists, UsageError

if TYPE_CHECKING:
    from PIL import Image

Where = Annotated[str | None, declared(RestoreOptions, "where")]
Select = Annotated[list[str] | None, declared(RestoreOptions, "select")]
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffix of a sheet's name -> what Pillow calls its format."""
_LARGEST_PX = {"JPEG": 65535, "WEBP": 16383}
_SHEET_QUALITY = 92
"""Of sheets with loss: captions stay sharp."""


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

    with _brief(), zb.open(archive, keep_going=True) as opened:
        numbers = listing.chosen(opened, listing.Choice(where, tuple(select or ()), sort, limit))
        if as_json:
            # ASCII: a path may have bytes that are no text, and JSON's escapes keep them
            print_text(json.dumps(listing.table(opened, numbers), indent=2, allow_nan=False))
        elif numbers:
            print_text("\n".join((listing.long_lines if long else listing.short_lines)(opened, numbers)))
        if damage := opened.damage:
            raise ArchiveError(listing.damage_text(archive, "list", damage))


@as_command("the rest of the file was not written")
def cat(
    ctx: typer.Context,
    archive: ArchivePath,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path, as ls lists it.")],
    force: Annotated[bool, typer.Option("--force", help="Write to a terminal, too.")] = False,
    device: Annotated[
        str | None,
        flag(
            "--device",
            metavar="auto|cpu|cuda",
            help="Where the networks run: for one image, a GPU takes longer to start than it saves.",
            default="cpu",
        ),
    ] = None,
) -> None:
    """Write one file of an archive, as restore would write it, to standard output.

    Examples:

    \b
      zippy-batch cat out.parquet id_0001/face.jpg > face.jpg
    """
    import zippy_batch as zb
    from zippy_batch.views.listing import file_of, partial_text

    if sys.stdout.isatty() and not force:
        raise UsageError(
            "a file of an archive is no text for a terminal: redirect it, as in > face.jpg, or say --force"
        )
    with _brief(), zb.open(archive, device or "cpu", keep_going=True) as opened:
        elsewhere = opened.damage
        data = file_of(opened, path).bytes()
        damage = [one for one in opened.damage if one not in elsewhere]
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if damage:
        raise ArchiveError(partial_text(damage))


@as_command("nothing was left behind")
def show(
    ctx: typer.Context,
    archive: ArchivePath,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SHEET.png", help="The picture to write: PNG, JPEG or WebP.")
    ],
    where: Where = None,
    select: Select = None,
    worst: Annotated[
        int | None, flag("--worst", metavar="N", help="The N pictures with the least PSNR, the worst first.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Most pictures, where --worst is not given.")
    ] = 100,
    columns: Annotated[int | None, flag("--columns", metavar="N", help="Pictures side by side.")] = None,
    against: Annotated[
        str | None, flag("--against", metavar="DIR", help="The originals, to show each beside what came back.")
    ] = None,
    device: Annotated[str | None, declared(ArchiveOptions, "device")] = None,
    overwrite: Annotated[bool | None, declared(RunOptions, "overwrite")] = None,
) -> None:
    """Draw pictures of an archive on one sheet, each with its path and its PSNR.

    Examples:

    \b
      zippy-batch show out.parquet -o sheet.png
      zippy-batch show out.parquet --worst 50 -o worst.jpg
      zippy-batch show out.parquet --against ./faces --limit 16 -o beside.png
    """
    import zippy_batch as zb
    from zippy_batch.stores.object_path import local_path
    from zippy_batch.views import listing, sheet

    _refuse_sheet(output, bool(overwrite))
    originals = None if against is None else local_path(against, "show")
    most, by = (limit, None) if worst is None else (worst, "psnr")
    with zb.open(archive, device or ArchiveOptions.device, keep_going=True) as opened:
        numbers = listing.chosen(opened, listing.Choice(where, tuple(select or ()), by, most))
        picture = sheet.contact_sheet(opened[numbers], columns, originals)
        damage = opened.damage
    _write(picture, output)
    typer.echo(f"{output}: {len(numbers)} pictures, {picture.width} x {picture.height} pixels")
    if damage:
        raise ArchiveError(listing.damage_text(archive, "sheet", damage))


def _refuse_sheet(output: Path, overwrite: bool) -> None:
    """Raises UsageError for what could not be written at the end."""
    if output.suffix.lower() not in _FORMATS:
        raise UsageError(f"{output}: expected a name that ends in {', '.join(_FORMATS)}")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no directory {output.parent}")
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputExists(f"{output} exists; choose another name, or replace a file with --overwrite")


def _write(picture: Image.Image, output: Path) -> None:
    """Raises UsageError for a sheet that its format has no room for."""
    from zippy_batch.stores.atomic_file import replacing

    format = _FORMATS[output.suffix.lower()]
    most = _LARGEST_PX.get(format)
    if most is not None and max(picture.size) > most:
        raise UsageError(
            f"a sheet of {picture.width} x {picture.height} pixels, and {format} has at most {most} a side: write a "
            f"PNG, or choose fewer pictures or other --columns"
        )
    with replacing(output) as new:
        picture.save(new, format, quality=_SHEET_QUALITY)


@contextmanager
def _brief() -> Iterator[None]:
    """Loading libraries makes objects by the hundred thousand, which stay: a search among them for what can go, again
    and again, takes a fifth of the time of a command that does little else."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
