"""`zippy-batch export`: an archive in a form that needs no zippy-batch to be read."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, as_command, declared, flag
from zippy_batch.config import RestoreOptions
from zippy_batch.errors import UsageError


@as_command("nothing was left behind")
def export(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="hf", help="What for: hf, a data set of Hugging Face's Hub.")],
    archive: ArchivePath,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A directory that is made.")],
    where: Annotated[
        str | None, declared(RestoreOptions, "where", help="Only files that a condition holds for.")
    ] = None,
    parts: Annotated[
        int | None, flag("--parts", metavar="N", help="Number of files.", default="20 or more, by size")
    ] = None,
) -> None:
    """Write an archive's pictures as Parquet files of plain JPEG bytes, with labels.

    They take the bytes that restored files take.

    Examples:

    \b
      zippy-batch export hf out.parquet ./published
      zippy-batch export hf out.parquet ./published --where "psnr > 35" --parts 40
    """
    import zippy_batch as zb

    if kind != "hf":
        raise UsageError(f"there is no form {kind!r} to export to; there is hf")
    if parts is not None and parts < 1:
        raise UsageError(f"--parts is 1 or more, not {parts}")
    count = zb.hf.export(archive, output, where, parts or 0)
    typer.echo(f"{count} pictures in {output}")
