"""`zippy-batch stats` and `zippy-batch verify`: what an archive says of itself, and whether that is so."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, ProgressFlag, Quiet, as_command, flag
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import RunOptions, VerifyOptions


@as_command("nothing was changed")
def stats(ctx: typer.Context, archive: ArchivePath, as_json: Json = False) -> None:
    """Show what is in an archive: size and quality by shard.

    Reads the columns, decodes nothing.

    Examples:

    \b
      zippy-batch stats out.parquet
      zippy-batch stats out.parquet --json
    """
    import zippy_batch as zb

    print_report(zb.stats(archive), as_json)


@as_command("nothing was changed", without=("overwrite",))
def verify(
    ctx: typer.Context,
    archive: ArchivePath,
    against: Annotated[
        str | None,
        flag(
            "--against",
            metavar="SOURCE",
            help="The originals: is every one of them in the archive, and is every row what it promises?",
        ),
    ] = None,
    *,
    options: VerifyOptions,
    run: RunOptions,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check an archive, by its checksums or against the originals.

    Examples:

    \b
      zippy-batch verify out.parquet
      zippy-batch verify out.parquet --deep
      zippy-batch verify out.parquet --against ./faces
      zippy-batch verify s3://bucket/out.parquet --sample 1000
      zippy-batch verify https://example.org/out.parquet
    """
    import zippy_batch as zb
    from zippy_batch.cli.progress import Shown, showing

    with reserved_stdout(), showing("verify", Shown.of(progress, quiet)) as watch:
        report = zb.verify(archive, against, options, run, watch)
    print_report(report, as_json, quiet)
