"""`zippy-batch diff` and `zippy-batch dedupe`: what differs between archives, and what is in one twice."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, ProgressFlag, Quiet, as_command, flag
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import RunOptions
from zippy_batch.errors import UsageError, ZippyError


@as_command("nothing was changed")
def diff(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="An archive; a path or an s3:// URI.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The archive to compare it with.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare two archives: what only one of them has, and what changed in content, quality or label.

    Exit code 0 where they are the same, 1 where they differ, 2 where there is trouble, as of diff(1).

    Examples:

    \b
      zippy-batch diff old.parquet new.parquet
      zippy-batch diff s3://bucket/out out --json
    """
    import zippy_batch as zb

    try:
        with reserved_stdout():
            report = zb.diff(a, b)
    except (ZippyError, OSError) as error:
        # 1 says that they differ
        raise UsageError(str(error)) from error
    print_report(report, as_json, quiet and not as_json)


@as_command("nothing was changed", without=("overwrite",))
def dedupe(
    ctx: typer.Context,
    archive: ArchivePath,
    report: Annotated[
        bool, typer.Option("--report", help="List groups of paths with the same content; all that dedupe does.")
    ] = False,
    near: Annotated[
        int | None,
        flag(
            "--near",
            metavar="0..15",
            help="Decode every picture, and list those that look alike, too: whose hashes differ in at most so many of "
            "64 bits. 4 finds what was scaled or coded again.",
        ),
    ] = None,
    *,
    run: RunOptions,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List files that an archive has under several paths, those whose labels disagree first. Changes nothing.

    Examples:

    \b
      zippy-batch dedupe out.parquet --report
      zippy-batch dedupe out.parquet --report --json
      zippy-batch dedupe out.parquet --report --near 4
    """
    import zippy_batch as zb

    if not report:
        raise UsageError("dedupe lists what is there twice, and changes nothing: give --report")
    from zippy_batch.cli.progress import Shown, showing

    with reserved_stdout(), showing("dedupe", Shown.of(progress, quiet)) as watch:
        found = zb.dedupe(archive, near, run, watch)
    print_report(found, as_json, quiet)
