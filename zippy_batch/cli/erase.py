"""`zippy-batch erase`: rows that are to be gone."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, Quiet, as_command, flag
from zippy_batch.cli.outcome import print_report, reserved_stdout
from zippy_batch.config import EraseOptions
from zippy_batch.errors import UsageError


@as_command("the archive is as it was; run the same command again")
def erase(
    ctx: typer.Context,
    archive: ArchivePath,
    where: Annotated[
        str | None,
        flag("--where", metavar="CONDITION", help="Erase the rows that fulfil it, e.g. \"label == 'id_0042'\"."),
    ] = None,
    paths: Annotated[
        Path | None, flag("--paths", metavar="FILE", help="Erase the paths that this file has, one on each line.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be erased, and change nothing.")] = False,
    *,
    options: EraseOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take rows out of an archive for good, and write a receipt.

    What held the rows is written anew without them; all else is checked. Copies of the archive are not reached.

    Examples:

    \b
      zippy-batch erase out.parquet --where "label == 'id_0042'" --dry-run
      zippy-batch erase out.parquet --where "label == 'id_0042'" --sign key.pem
      zippy-batch erase out --paths requests.txt --receipt erased.json
    """
    import zippy_batch as zb

    listed = None if paths is None else _lines(paths)
    with reserved_stdout():
        report = zb.erase(archive, where, listed, options.receipt, options.sign, dry_run)
    print_report(report, as_json, quiet)


def _lines(file: Path) -> list[bytes]:
    """The lines of a file that are not empty. Raises UsageError."""
    try:
        return [line for line in file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines() if line]
    except OSError as error:
        raise UsageError(f"--paths {file}: {error.strerror}; expected a file with a path on each line") from error
