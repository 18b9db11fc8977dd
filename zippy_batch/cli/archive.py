"""`zippy-batch archive`."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import Json, ProgressFlag, Quiet, as_command
from zippy_batch.cli.outcome import hint, print_report, quoted, reserved_stdout
from zippy_batch.config import ArchiveOptions, RunOptions

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing; code 200 files and say what the archive would be: bytes, quality, time and disk.",
    ),
]


@as_command("run the same command again to go on where it stopped")
def archive(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Directory, list of paths (.txt), .tar, .zip, .parquet or .rec; every file in it is archived. A path, "
            "or for a directory an s3:// URI.",
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="NAME.parquet for one file; any other name is a directory of parts. A path or an s3:// URI.",
        ),
    ],
    options: ArchiveOptions,
    run: RunOptions,
    dry_run: DryRun = False,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Archive a directory of images, or a file that holds images.

    An interrupted run goes on where it stopped when the same command is given again.

    Examples:

    \b
      zippy-batch archive ./faces out.parquet
      zippy-batch archive ./faces out.parquet --dry-run
      zippy-batch archive ./faces out.parquet --exact
      zippy-batch archive ./faces out.parquet --quality 85 --min-psnr 30
      zippy-batch archive ./faces out/ --config cluster --workers 64
      zippy-batch archive s3://bucket/faces s3://bucket/faces.parquet
      zippy-batch archive train.rec out.parquet --exact
      zippy-batch archive ./shards out/ --input tar
      zippy-batch archive ./celeba out.parquet --labels identity_CelebA.txt
    """
    import zippy_batch as zb
    from zippy_batch.cli.progress import Shown, showing

    with reserved_stdout(), showing("archive", Shown.of(progress, quiet)) as watch:
        report = (zb.estimate if dry_run else zb.archive)(source, output, options, run, watch)
    print_report(report, as_json, quiet)
    kind = "" if options.input == "auto" else f" --input {options.input}"
    check = f"zippy-batch verify {quoted(output)} --against {quoted(source)}{kind}"
    if not quiet and not dry_run:
        hint(f"before you delete the originals: {check}")
