"""`zippy-batch append`: files that an archive does not have yet."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, ProgressFlag, Quiet, as_command
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import AppendOptions, RunOptions


@as_command("the archive is as it was; run the same command again to go on", without=("overwrite",))
def append(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="NEW", help="Where files are, some of which the archive has: as for archive.")
    ],
    archive: ArchivePath,
    options: AppendOptions,
    run: RunOptions,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add files to an archive that it does not have yet, by path, with the archive's options and models.

    Where nothing is new, this takes a listing, and nothing is written.

    Examples:

    \b
      zippy-batch append ./faces out.parquet
      zippy-batch append ./faces out --update --workers 4
      zippy-batch append ./faces out --update --checksum
    """
    import zippy_batch as zb
    from zippy_batch.cli.progress import Shown, showing

    with reserved_stdout(), showing("append", Shown.of(progress, quiet)) as watch:
        report = zb.append(source, archive, options, run, watch)
    print_report(report, as_json, quiet)
