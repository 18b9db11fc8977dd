"""`zippy-batch erase`: rows that are to be gone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zippy_batch.cli.options import ArchivePath, Json, Quiet, as_command, flag
from zippy_batch.cli.outcome import print_report, reserved_stdout


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
    receipt: Annotated[
        Path | None, flag("--receipt", metavar="FILE", help="Where the receipt goes.", default="beside the archive")
    ] = None,
    sign: Annotated[
        Path | None, flag("--sign", metavar="KEY", help="Sign the receipt with this Ed25519 key, a PEM file.")
    ] = None,
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
    from zippy_batch.run import erase as erasing

    wish = erasing.Erasure(where, None if paths is None else erasing.read_paths(paths), receipt, sign)
    with reserved_stdout():
        report = erasing.erase(archive, wish, dry_run)
    print_report(report, as_json, quiet)
