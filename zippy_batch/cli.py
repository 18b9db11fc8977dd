"""The command line: parse, call the pipeline, print, exit code.

Nothing heavy is imported until a command runs, so that `--help` answers at once. What a command was asked for goes to
standard output (a table, or the whole report as JSON); progress, hints and errors go to standard error.

Exit codes: 0 all accounted for, 1 damage or failure, 2 usage, 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zippy_batch.config import (
    DEVICES,
    FORMATS,
    ArchiveOptions,
    Preset,
    RestoreOptions,
    RunOptions,
    combine,
    load_preset,
)
from zippy_batch.errors import ZippyError

if TYPE_CHECKING:
    from zippy_batch.report import Report

INTERRUPTED = 130

app = typer.Typer(
    name="zippy-batch",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ARCHIVE = ArchiveOptions()
_RESTORE = RestoreOptions()


def _flag(*names: str, help: str, default: object = None, metavar: str | None = None) -> Any:
    """An option that is None when it is not given, because a preset may set it; its help says the real default."""
    shown = help if default is None else f"{help}  [default: {default}]"
    return typer.Option(*names, help=shown, metavar=metavar, show_default=False)


Config = Annotated[
    Path | None, _flag("--config", metavar="FILE", help="Preset in TOML; flags on the command line win over it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON on standard output.")]
Workers = Annotated[
    int | None,
    _flag(
        "--workers",
        metavar="N",
        help="Worker processes; 1 stays in this process, without Ray. Never changes the result.",
        default="as many as pay",
    ),
]
Address = Annotated[
    str | None,
    _flag("--address", metavar="HOST:PORT", help="Ray cluster to join; 'auto' finds the one this machine is part of."),
]
Overwrite = Annotated[bool | None, _flag("--overwrite", help="Replace what is already there.")]
BatchSize = Annotated[
    int | None,
    _flag("--batch-size", metavar="N", help="Images per pass through the networks.", default=_ARCHIVE.batch_size),
]
Device = Annotated[
    str | None,
    _flag("--device", metavar="|".join(DEVICES), help="Where the networks run.", default=_ARCHIVE.device),
]
ArchivePath = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A .parquet file or a directory of parts.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zippy-batch {metadata.version('zippy-batch')}")
        raise typer.Exit


@app.callback()
def _program(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    full_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the program an error came from.")
    ] = False,
) -> None:
    """Turn a directory of face images into one small Parquet archive, and back, with known quality.

    Examples:

    \b
      zippy-batch archive ./faces out.parquet
      zippy-batch verify out.parquet --against ./faces
      zippy-batch restore out.parquet ./restored
    """
    ctx.obj = full_traceback


@app.command()
def archive(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Directory of images; every file below it is archived.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="NAME.parquet for one file; any other name is a directory of parts.")
    ],
    quality: Annotated[
        int | None,
        _flag("--quality", "-q", metavar="1..100", help="Higher is better and bigger.", default=_ARCHIVE.quality),
    ] = None,
    min_psnr: Annotated[
        float | None,
        _flag(
            "--min-psnr",
            metavar="DB",
            help="Floor for every image: its quality is raised until it gets there; else it is stored exactly or kept "
            "as it is.",
        ),
    ] = None,
    verify: Annotated[
        bool | None,
        _flag(
            "--verify/--no-verify",
            help="Decode every image again before it counts as archived. Without that a run is faster, but the archive "
            "says nothing about its quality, and a fault shows only on restore.",
            default="verify",
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        _flag("--strict/--lenient", help="Fail on a file that would be kept as it is.", default="lenient"),
    ] = None,
    exact: Annotated[
        bool | None,
        _flag(
            "--exact/--no-exact",
            help="Store JPEG files so that the very same files come back, and keep everything else as it is. Without "
            "either, exact storage is taken where it costs no more than lossy; with --no-exact, nowhere.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        _flag(
            "--model",
            metavar="NAME|FILE",
            help="Of the lossy codec: a built-in model or a .safetensors file.",
            default=_ARCHIVE.model,
        ),
    ] = None,
    exact_model: Annotated[
        str | None,
        _flag("--exact-model", metavar="NAME|FILE", help="Of the exact codec.", default=_ARCHIVE.exact_model),
    ] = None,
    shard_size: Annotated[
        int | None,
        _flag("--shard-size", metavar="N", help="Images per shard, the unit of work and of loss.", default="chosen"),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    workers: Workers = None,
    address: Address = None,
    overwrite: Overwrite = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Archive a directory of images.

    An interrupted run goes on where it stopped when the same command is given again.

    Examples:

    \b
      zippy-batch archive ./faces out.parquet
      zippy-batch archive ./faces out.parquet --exact
      zippy-batch archive ./faces out.parquet --quality 85 --min-psnr 30
      zippy-batch archive ./faces out/ --config configs/cluster.toml --workers 64
    """
    with _outcome(ctx, "run the same command again to go on where it stopped"):
        preset = _preset(config)
        options = combine(
            ArchiveOptions,
            preset.archive,
            {
                "quality": quality,
                "min_psnr": min_psnr,
                "verify": verify,
                "strict": strict,
                "exact": None if exact is None else "always" if exact else "never",
                "model": model,
                "exact_model": exact_model,
                "shard_size": shard_size,
                "batch_size": batch_size,
                "device": device,
            },
        )
        run = _run_options(preset, workers, address, overwrite)
        from zippy_batch import pipeline
        from zippy_batch.progress import showing

        with showing("archive") as watch:
            report = pipeline.archive(source, output, options, run, watch)
        _print_report(report, as_json)
        _hint(f"before you delete the originals: zippy-batch verify {_quoted(output)} --against {_quoted(source)}")


@app.command()
def restore(
    ctx: typer.Context,
    archive: ArchivePath,
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go; made if it does not exist.")],
    format: Annotated[
        str | None,
        _flag("--format", metavar="|".join(FORMATS), help="What images are restored as.", default=_RESTORE.format),
    ] = None,
    jpeg_quality: Annotated[
        int | None,
        _flag(
            "--jpeg-quality",
            metavar="1..100",
            help="One quality for all JPEG files.",
            default="each source's own quantisation tables",
        ),
    ] = None,
    select: Annotated[
        str | None, _flag("--select", metavar="GLOB", help="Only the paths that match, e.g. 'id_0001/*.jpg'.")
    ] = None,
    keep_going: Annotated[
        bool | None, _flag("--keep-going", help="Restore what is whole, list what is damaged, exit 1.")
    ] = None,
    reference: Annotated[
        Path | None, _flag("--reference", metavar="DIR", help="The originals, to measure the restored files against.")
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    workers: Workers = None,
    address: Address = None,
    overwrite: Overwrite = None,
    config: Config = None,
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
      zippy-batch restore out.parquet ./restored --reference ./faces --json
    """
    with _outcome(ctx, "run the same command again to finish it"):
        preset = _preset(config)
        options = combine(
            RestoreOptions,
            preset.restore,
            {
                "format": format,
                "jpeg_quality": jpeg_quality,
                "select": select,
                "keep_going": keep_going,
                "reference": reference,
                "batch_size": batch_size,
                "device": device,
            },
        )
        run = _run_options(preset, workers, address, overwrite)
        from zippy_batch import pipeline
        from zippy_batch.progress import showing

        with showing("restore") as watch:
            report = pipeline.restore(archive, destination, options, run, watch)
        _print_report(report, as_json)


@app.command()
def stats(ctx: typer.Context, archive: ArchivePath, as_json: Json = False) -> None:
    """Show what is in an archive: size and quality by shard.

    Reads the columns, decodes nothing.

    Examples:

    \b
      zippy-batch stats out.parquet
      zippy-batch stats out.parquet --json
    """
    with _outcome(ctx, "nothing was changed"):
        from zippy_batch import pipeline

        _print_report(pipeline.stats(archive), as_json)


@app.command()
def verify(
    ctx: typer.Context,
    archive: ArchivePath,
    against: Annotated[
        Path | None,
        _flag(
            "--against",
            metavar="DIR",
            help="The originals: is every one of them in the archive, and is every row what it promises?",
        ),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image, beyond the checksums.")] = False,
    workers: Workers = None,
    address: Address = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check an archive, by its checksums or against the originals.

    Examples:

    \b
      zippy-batch verify out.parquet
      zippy-batch verify out.parquet --deep
      zippy-batch verify out.parquet --against ./faces
    """
    with _outcome(ctx, "nothing was changed"):
        run = _run_options(_preset(config), workers, address, None)
        from zippy_batch import pipeline
        from zippy_batch.progress import showing

        with showing("verify") as watch:
            report = pipeline.verify(archive, against, deep, run, watch)
        _print_report(report, as_json)


@app.command()
def models(ctx: typer.Context, as_json: Json = False) -> None:
    """List the built-in models.

    Examples:

    \b
      zippy-batch models
      zippy-batch archive ./faces out.parquet --model faces
    """
    with _outcome(ctx, "nothing was changed"):
        from zippy_batch import weights

        summaries = weights.list_models()
        if as_json:
            _print_json([asdict(summary) for summary in summaries])
            return
        for summary in summaries:
            _print(f"{summary.name}  {summary.codec} codec  {summary.size_bytes / 1e6:.1f} MB  {summary.id}")
            notice = str(summary.card.get("notice", ""))
            if notice:
                _print(textwrap.indent(textwrap.fill(notice, 98, break_on_hyphens=False), "  "))


def main() -> None:
    app()


@contextmanager
def _outcome(ctx: typer.Context, when_interrupted: str) -> Iterator[None]:
    """What goes wrong inside becomes one message on standard error and an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _show_traceback(ctx)
        typer.echo(f"interrupted; {when_interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except ZippyError as error:
        _show_traceback(ctx)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        # the machine said no: no space left, no permission, a path that is too long
        _show_traceback(ctx)
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"error: {error.strerror or error}{where}", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        _show_traceback(ctx)
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        typer.echo(f"error: {what}", err=True)
        if not ctx.obj:
            name = ctx.info_name
            typer.echo(
                f"this was not foreseen; to see where it came from: zippy-batch --traceback {name} ...", err=True
            )
        raise typer.Exit(1) from None


def _show_traceback(ctx: typer.Context) -> None:
    if ctx.obj:
        traceback.print_exc()


def _preset(config: Path | None) -> Preset:
    return load_preset(config) if config else Preset()


def _run_options(preset: Preset, workers: int | None, address: str | None, overwrite: bool | None) -> RunOptions:
    return combine(RunOptions, preset.run, {"workers": workers, "address": address, "overwrite": overwrite})


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        _print_json(report.to_dict())
    else:
        _print("\n".join(report.lines()))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _print(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        # the reader has seen enough, as in `zippy-batch stats ARCHIVE | head`, which says nothing about the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hint(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
