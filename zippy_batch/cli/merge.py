"""`zippy-batch merge` and `zippy-batch select`: archives of the rows of archives."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, Quiet, as_command, declared, flag
from zippy_batch.cli.outcome import print_reports, reserved_stdout
from zippy_batch.config import RestoreOptions, RunOptions
from zippy_batch.errors import UsageError

Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="NAME.parquet for one file; any other name is a directory of parts. A path or an s3:// URI.",
    ),
]
_IN_PROCESS = ("workers", "address")
"""Options of a run that copies have no use for: they take as long as the disk does."""


@as_command("run the same command again to go on where it stopped", without=_IN_PROCESS)
def merge(
    ctx: typer.Context,
    archives: Annotated[list[str], typer.Argument(metavar="ARCHIVE...", help="Archives, each a path or an s3:// URI.")],
    output: Output,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Put the name of its archive and a slash before each path.")
    ] = False,
    *,
    run: RunOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make one archive of several, without decoding an image.

    A path that two archives have is refused, unless --prefix keeps them apart.

    Examples:

    \b
      zippy-batch merge monday.parquet tuesday.parquet -o week.parquet
      zippy-batch merge a b -o all/ --prefix
    """
    import zippy_batch as zb

    with reserved_stdout():
        report = zb.merge(archives, output, prefix, run.overwrite)
    print_reports([report], as_json, quiet)


@as_command("run the same command again to go on where it stopped", without=_IN_PROCESS)
def select(
    ctx: typer.Context,
    archive: ArchivePath,
    output: Output,
    where: Annotated[str | None, declared(RestoreOptions, "where")] = None,
    select: Annotated[list[str] | None, declared(RestoreOptions, "select")] = None,
    split: Annotated[
        str | None,
        flag(
            "--split",
            metavar="N|NAME=SHARE,...",
            help="Several archives: OUT-0.parquet and so on for a number, OUT-NAME.parquet for shares by name.",
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        flag(
            "--split-by",
            metavar="path|label",
            help="What is hashed to say where a file goes; with label, files of one label stay together.",
            default="path",
        ),
    ] = None,
    *,
    run: RunOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make an archive of some rows of another, or divide it, without decoding an image.

    Examples:

    \b
      zippy-batch select out.parquet --where "psnr >= 30" -o good.parquet
      zippy-batch select out.parquet --select 'id_0001/*' -o one.parquet
      zippy-batch select out.parquet --split train=90,validation=10 --split-by label -o faces.parquet
    """
    import zippy_batch as zb

    if split is None and split_by is not None:
        raise UsageError("--split-by says how --split divides; give both")
    if split is None and where is None and not select:
        raise UsageError("every row would be selected: give --where, --select or --split, or copy the archive")
    with reserved_stdout():
        if split is None:
            reports = [zb.select(archive, output, where, select or (), run.overwrite)]
        else:
            by = split_by or "path"
            reports = [*zb.split(archive, output, split, by, run.overwrite, where, select or ()).values()]
    print_reports(reports, as_json, quiet)
