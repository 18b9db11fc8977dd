"""`zippy-batch restore`."""

from __future__ import annotations

from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, ProgressFlag, Quiet, as_command
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import RestoreOptions, RunOptions


@as_command("run the same command again to finish it")
def restore(
    ctx: typer.Context,
    archive: ArchivePath,
    destination: Annotated[str, typer.Argument(metavar="DIR", help="Where the files go; made if it does not exist.")],
    options: RestoreOptions,
    run: RunOptions,
    progress: ProgressFlag = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Restore the files of an archive.

    Images come back as JPEG with the source's own quantisation tables; files that were stored exactly, or kept as they
    are, come back byte for byte. A path whose format changes gets the new suffix appended: a.png comes back as
    a.png.jpg.

    Examples:

    \b
      zippy-batch restore out.parquet ./restored
      zippy-batch restore out.parquet ./restored --format png --select 'id_0001/*'
      zippy-batch restore out.parquet ./worst --where "psnr < 29 or codec == 'raw'"
      zippy-batch restore out.parquet ./restored --reference ./faces --json
    """
    import zippy_batch as zb
    from zippy_batch.cli.progress import Shown, showing

    with reserved_stdout(), showing("restore", Shown.of(progress, quiet)) as watch:
        report = zb.restore(archive, destination, options, run, watch)
    print_report(report, as_json, quiet)
