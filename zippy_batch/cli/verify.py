"""`zippy-batch stats` and `zippy-batch verify`: what an archive says of itself, and whether that is so."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, ProgressFlag, Quiet, as_command, declared, flag
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import UsageError


@as_command("nothing was changed")
def stats(ctx: typer.Context, archive: ArchivePath, as_json: Json = False) -> None:
    """Show what is in an archive: size and quality by shard.

    Reads the columns, decodes nothing.

    Examples:

    \b
      zippy-batch stats out.parquet
      zippy-batch stats out.parquet --json
    """
    from zippy_batch.run import pipeline
    from zippy_batch.stores.object_path import place

    print_report(pipeline.stats(place(archive)), as_json)


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
    input: Annotated[str | None, declared(ArchiveOptions, "input", help="What the originals are.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image, beyond the checksums.")] = False,
    sample: Annotated[
        int | None,
        flag("--sample", metavar="N", help="Look at N rows, chosen at random, and at no file as a whole."),
    ] = None,
    *,
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
    """
    from zippy_batch.cli.progress import Shown, showing
    from zippy_batch.run import pipeline
    from zippy_batch.stores.object_path import place

    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample}: a sample has 1 row or more")
    kind = input or ArchiveOptions.input
    originals = None if against is None else place(against)
    shown = Shown.of(progress, quiet)
    with reserved_stdout(), showing("verify", shown) as watch:
        report = pipeline.verify(place(archive), originals, deep, run, watch, input=kind, sample=sample or 0)
    print_report(report, as_json, quiet)
