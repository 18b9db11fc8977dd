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
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zippy_batch.config import (
    DEVICES,
    FORMATS,
    INPUTS,
    LABELS,
    LOSSES,
    TRAINABLE_CODECS,
    ArchiveOptions,
    Preset,
    RestoreOptions,
    RunOptions,
    TrainOptions,
    combine,
    load_preset,
)
from zippy_batch.errors import OptionError, OutputExists, UsageError, WriteError, ZippyError

if TYPE_CHECKING:
    from zippy_batch.run.report import Report
    from zippy_batch.training.session import TrainReport

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
_TRAIN = TrainOptions()
_FLAGS = {"start": "--from"}
"""Where the flag of an option is not its name."""


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
        help="Worker processes; 1 stays in this process, without Ray, and 0 chooses. Never changes the result.",
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
Input = Annotated[
    str | None,
    _flag(
        "--input",
        metavar="|".join(INPUTS),
        help="What the source is; auto tells by its name. tar and others take a directory of such files, too.",
        default=_ARCHIVE.input,
    ),
]
ArchivePath = Annotated[
    str, typer.Argument(metavar="ARCHIVE", help="A .parquet file or a directory of parts; a path or an s3:// URI.")
]


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
    input: Input = None,
    labels: Annotated[
        str | None,
        _flag(
            "--labels",
            metavar="|".join((*LABELS, "FILE")),
            help="Where the column label comes from: what the source itself has as labels, the name of the directory "
            "that a file is in, nowhere, or a table (.csv, .tsv, .txt) with a line for each picture.",
            default=_ARCHIVE.labels,
        ),
    ] = None,
    label_pattern: Annotated[
        str | None,
        _flag(
            "--label-pattern",
            metavar="REGEX",
            help="Take labels from the names of files: what is in parentheses, as in '^([0-9]+)_'.",
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        _flag(
            "--image-column",
            metavar="NAME",
            help="Column of images of a Parquet file.",
            default="one that is known, or the only one of its type",
        ),
    ] = None,
    name_column: Annotated[
        str | None,
        _flag(
            "--name-column",
            metavar="NAME",
            help="Column of a Parquet file, or of the table of --labels, that says how pictures are called.",
            default="one that is known",
        ),
    ] = None,
    label_column: Annotated[
        str | None, _flag("--label-column", metavar="NAME", help="Likewise for labels.", default="one that is known")
    ] = None,
    encoding: Annotated[
        str | None,
        _flag(
            "--encoding",
            metavar="NAME",
            help="Code page, such as cp932 or gbk, of names in a zip and of labels that are not in UTF-8.",
        ),
    ] = None,
    leave_out: Annotated[
        bool | None,
        _flag(
            "--leave-out",
            help="Leave out, and name, what an archive has no place for, as other columns of a Parquet file; it is an "
            "error otherwise.",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        _flag(
            "--shard-size",
            metavar="N",
            help="Images per shard, the unit of work and of loss; 0 chooses.",
            default="chosen",
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    workers: Workers = None,
    address: Address = None,
    overwrite: Overwrite = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Archive a directory of images, or a file that holds images.

    An interrupted run goes on where it stopped when the same command is given again.

    Examples:

    \b
      zippy-batch archive ./faces out.parquet
      zippy-batch archive ./faces out.parquet --exact
      zippy-batch archive ./faces out.parquet --quality 85 --min-psnr 30
      zippy-batch archive ./faces out/ --config configs/cluster.toml --workers 64
      zippy-batch archive s3://bucket/faces s3://bucket/faces.parquet
      zippy-batch archive train.rec out.parquet --exact
      zippy-batch archive ./shards out/ --input tar
      zippy-batch archive ./celeba out.parquet --labels identity_CelebA.txt
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
                "input": input,
                "labels": labels,
                "label_pattern": label_pattern,
                "image_column": image_column,
                "name_column": name_column,
                "label_column": label_column,
                "encoding": encoding,
                "leave_out": leave_out,
                "shard_size": shard_size,
                "batch_size": batch_size,
                "device": device,
            },
        )
        run = _run_options(preset, workers, address, overwrite)
        from zippy_batch.cli.progress import showing
        from zippy_batch.run import pipeline
        from zippy_batch.stores.object_path import place

        origin, target = place(source), place(output)
        with _for_the_report(), showing("archive") as watch:
            report = pipeline.archive(origin, target, options, run, watch)
        _print_report(report, as_json)
        kind = "" if options.input == "auto" else f" --input {options.input}"
        check = f"zippy-batch verify {_quoted(target)} --against {_quoted(origin)}{kind}"
        _hint(f"before you delete the originals: {check}")


@app.command()
def restore(
    ctx: typer.Context,
    archive: ArchivePath,
    destination: Annotated[str, typer.Argument(metavar="DIR", help="Where the files go; made if it does not exist.")],
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
        list[str] | None,
        _flag(
            "--select",
            metavar="GLOB",
            help="Only the paths that match, e.g. 'id_0001/*.jpg'; given several times, those that any matches.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        _flag("--where", metavar="CONDITION", help="Only the rows whose columns fulfil it, e.g. 'psnr < 30'."),
    ] = None,
    keep_going: Annotated[
        bool | None, _flag("--keep-going", help="Restore what is whole, list what is damaged, exit 1.")
    ] = None,
    reference: Annotated[
        Path | None, _flag("--reference", metavar="DIR", help="The originals, to measure the restored files against.")
    ] = None,
    sync: Annotated[
        bool | None,
        _flag(
            "--sync/--no-sync",
            help="Bring every file to disk, proof against a power cut, before the restore counts as done.",
            default="sync",
        ),
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
      zippy-batch restore out.parquet ./worst --where "psnr < 29 or codec == 'raw'"
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
                "select": tuple(select) if select else None,
                "where": where,
                "keep_going": keep_going,
                "reference": reference,
                "sync": sync,
                "batch_size": batch_size,
                "device": device,
            },
        )
        run = _run_options(preset, workers, address, overwrite)
        from zippy_batch.cli.progress import showing
        from zippy_batch.run import pipeline
        from zippy_batch.stores.object_path import place

        with _for_the_report(), showing("restore") as watch:
            report = pipeline.restore(place(archive), place(destination), options, run, watch)
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
        from zippy_batch.run import pipeline
        from zippy_batch.stores.object_path import place

        _print_report(pipeline.stats(place(archive)), as_json)


@app.command()
def verify(
    ctx: typer.Context,
    archive: ArchivePath,
    against: Annotated[
        str | None,
        _flag(
            "--against",
            metavar="SOURCE",
            help="The originals: is every one of them in the archive, and is every row what it promises?",
        ),
    ] = None,
    input: Input = None,
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
        from zippy_batch.cli.progress import showing
        from zippy_batch.run import pipeline
        from zippy_batch.stores.object_path import place

        originals = None if against is None else place(against)
        with _for_the_report(), showing("verify") as watch:
            report = pipeline.verify(place(archive), originals, deep, run, watch, input=input or _ARCHIVE.input)
        _print_report(report, as_json)


@app.command()
def compare(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Directory of images; nothing in it is changed.")],
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Files to look at, spread evenly over SOURCE; 0 takes all.")
    ] = 200,
    qualities: Annotated[
        str | None,
        _flag("--qualities", metavar="Q,Q", help="Of zippy-batch, 1..100.", default="25,40,55,65,75,85,95"),
    ] = None,
    only: Annotated[
        str | None, _flag("--only", metavar="NAME,NAME", help="Only these contenders, by their names in the table.")
    ] = None,
    skip: Annotated[str | None, _flag("--skip", metavar="NAME,NAME", help="All contenders but these.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME|FILE", help="Of the lossy codec."),
    ] = _ARCHIVE.model,
    device: Device = None,
    json_file: Annotated[Path | None, _flag("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[Path | None, _flag("--plot", metavar="FILE.png", help="Draw quality over bytes.")] = None,
    sheet: Annotated[
        Path | None,
        _flag("--sheet", metavar="FILE.png", help="Lay faces side by side, as each gives them back at equal bytes."),
    ] = None,
    overwrite: Overwrite = None,
) -> None:
    """Compare with JPEG, WebP, AVIF and others, on your own images.

    Each is charged for loose files and for one Parquet file under zstd; an archive is charged whole. Without --json,
    --plot and --sheet nothing is written but the table.

    Examples:

    \b
      zippy-batch compare ./faces
      zippy-batch compare ./faces --only jpeg,avif,zippy-batch --qualities 40,60,75
      zippy-batch compare ./faces --limit 500 --plot curves.png --sheet faces.png --json figures.json
    """
    with _outcome(ctx, "nothing was written"):
        from zippy_batch.cli.progress import showing
        from zippy_batch.compare import charts
        from zippy_batch.compare.measure import QUALITIES, CompareOptions
        from zippy_batch.compare.measure import compare as measured

        options = CompareOptions(
            limit=limit,
            qualities=_numbers(qualities) if qualities else QUALITIES,
            only=_words(only),
            skip=_words(skip),
            model=model,
            device=device or _ARCHIVE.device,
            faces=5 if sheet else 0,
        )
        _refuse_unwritable([path for path in (json_file, plot, sheet) if path], bool(overwrite))
        if plot:
            charts.require_matplotlib()
        with showing("compare") as watch:
            found = measured(source, options, watch)
        _print("\n".join(found.lines()))
        if json_file:
            json_file.write_text(_json(found.to_dict()) + "\n")
        if plot:
            plot.write_bytes(charts.plot(found))
        if sheet:
            sheet.write_bytes(charts.sheet(found))


@app.command()
def train(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="Directories of images, lists of paths (a line each), or archives."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Model to write, NAME.safetensors.")],
    codec: Annotated[
        str | None,
        _flag(
            "--codec", metavar="|".join(TRAINABLE_CODECS), help="Lossy, or exact for JPEG files.", default=_TRAIN.codec
        ),
    ] = None,
    start: Annotated[
        str | None,
        _flag("--from", metavar="NAME|FILE", help="Model to adapt; that takes minutes, where a new one takes hours."),
    ] = None,
    minutes: Annotated[
        float | None,
        _flag("--minutes", metavar="M", help="Of training, interrupted parts included.", default=_TRAIN.minutes),
    ] = None,
    sizes: Annotated[
        str | None,
        _flag(
            "--sizes",
            metavar="own,WxH,...|mixed",
            help="What for: the images as they are (own), shrunk to sizes in pixels, both, or the mix that the "
            "built-in models were trained on.",
            default=_TRAIN.sizes,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        _flag("--loss", metavar="|".join(LOSSES), help="Distortion of the lossy codec.", default=_TRAIN.loss),
    ] = None,
    rate: Annotated[
        float | None, _flag("--rate", metavar="X", help="Factor on the learning rates.", default=_TRAIN.rate)
    ] = None,
    mirror: Annotated[
        bool | None,
        _flag(
            "--mirror/--no-mirror",
            help="Turn half of the images left to right, except JPEG files whose blocks that would move.",
            default="mirror",
        ),
    ] = None,
    seed: Annotated[int | None, _flag("--seed", metavar="N", help="Of everything random.", default=_TRAIN.seed)] = None,
    notice: Annotated[
        str | None,
        _flag("--notice", metavar="TEXT", help="For the model's card: its images' licence, what it may be used for."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the run that is there and begin anew.")] = False,
    device: Device = None,
    workers: Annotated[
        int | None,
        _flag(
            "--workers",
            metavar="N",
            help="Processes that train together, through Ray Train.",
            default="1; with --address one per GPU, or per 4 CPUs",
        ),
    ] = None,
    address: Address = None,
    overwrite: Overwrite = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fit a model to your own images, and say what it saves.

    The best model so far is written early and again as it gets better; an interrupted run goes on when the same command
    is given again, and a finished one with more --minutes.

    Examples:

    \b
      zippy-batch train ./faces -o mine.safetensors --from faces --minutes 20
      zippy-batch train ./faces -o mine-exact.safetensors --codec exact --from exact --minutes 20
      zippy-batch train ./photos ./more -o new.safetensors --sizes own,64x64 --minutes 600
      zippy-batch archive ./faces out.parquet --model mine.safetensors
    """
    with _outcome(ctx, "the same command goes on where it stopped"):
        preset = _preset(config)
        given = {"codec": codec, "start": start, "minutes": minutes, "sizes": sizes, "loss": loss, "rate": rate}
        given |= {"mirror": mirror, "seed": seed, "notice": notice, "device": device}
        options = combine(TrainOptions, preset.train, given)
        run = _run_options(preset, workers, address, overwrite)
        from zippy_batch.training import session

        with _for_the_report():
            report = session.train(sources, output, options, run, lambda line: typer.echo(line, err=True), restart)
        _print_report(report, as_json)


@app.command()
def models(
    ctx: typer.Context,
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Only these, among them model files of yours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in models, or say what is in model files.

    Examples:

    \b
      zippy-batch models
      zippy-batch models mine.safetensors --json
      zippy-batch archive ./faces out.parquet --model faces
    """
    with _outcome(ctx, "nothing was changed"):
        from zippy_batch.codecs import model_file

        summaries = model_file.list_models(wanted or model_file.builtin_names())
        if as_json:
            _print_json([asdict(summary) for summary in summaries])
        else:
            _print("\n".join(line for summary in summaries for line in summary.lines()))


@app.command()
def submit(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND ...", help="archive, restore, verify or train, with all it needs."),
    ] = None,
    address: Annotated[
        str | None,
        _flag(
            "--address",
            metavar="http://HOST:8265",
            help="The cluster's job server.",
            default="$RAY_API_SERVER_ADDRESS, else this machine",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's id once it works, and leave it to itself.")
    ] = False,
    status: Annotated[str | None, _flag("--status", metavar="ID", help="Print the state of a job.")] = None,
    logs: Annotated[str | None, _flag("--logs", metavar="ID", help="Follow a job that was submitted before.")] = None,
    stop: Annotated[str | None, _flag("--stop", metavar="ID", help="End a job; submitted again, it goes on.")] = None,
) -> None:
    """Run a command on a Ray cluster, through its job server.

    Paths are those that the machines of the cluster see. Versions and paths are checked on every machine; then the
    job's log is shown, and its exit code becomes that of this command. Ctrl-C ends the showing and not the job.

    Examples:

    \b
      zippy-batch submit --address http://head:8265 -- archive /mnt/faces /mnt/out -q 80
      zippy-batch submit --address http://head:8265 --detach -- restore /mnt/out /mnt/restored
      zippy-batch submit --address http://head:8265 --logs raysubmit_12345
    """
    wanted = parameters_of(command) if command else None
    with _outcome(ctx, "if a job was submitted, it goes on"):
        from zippy_batch.cli import job_client as jobs

        if sum(bool(one) for one in (command, status, logs, stop)) != 1:
            raise UsageError("give either a command after -- or one of --status, --logs and --stop")
        if command and command[0] not in jobs.COMMANDS:
            raise UsageError(f"submit runs {', '.join(jobs.COMMANDS)}; {command[0]} works without a cluster")
        paths = wanted is not None and jobs.Paths.of(wanted)
        address = address or os.environ.get(jobs.ADDRESS_VARIABLE) or jobs.DEFAULT_ADDRESS
        client = jobs.reach(address)
        if status:
            info = jobs.info_of(client, status)
            _print(f"{info.status}: {info.message}")
        elif stop:
            _print(jobs.stop(client, stop))
        elif logs:
            _follow(client, logs, address)
        elif wanted and command and paths:
            job = jobs.submit(client, command, joins=wanted.get("address") is not None)
            if not detach:
                _follow(client, job, address)
            elif code := jobs.wait_until_checked(client, job, _write):
                raise typer.Exit(code)
            else:
                _print(job)


def _follow(client: Any, job: str, address: str) -> None:
    """Raises Exit with the job's exit code."""
    from zippy_batch.cli import job_client as jobs

    again = f"zippy-batch submit --address {shlex.quote(address)}"
    try:
        raise typer.Exit(jobs.follow(client, job, _write))
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on. To follow it: {again} --logs {job}\nto end it: {again} --stop {job}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def parameters_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Of a command line of zippy-batch, by name. Raises what the command itself raises for a wrong one."""
    name, *rest = arguments
    group: Any = typer.main.get_command(app)
    with group.make_context("zippy-batch", [name, *rest]) as ctx:
        name, found, rest = group.resolve_command(ctx, [name, *rest])
        return dict(found.make_context(name, rest, parent=ctx).params)


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
        said = error.as_flags(_FLAGS) if isinstance(error, OptionError) else error
        typer.echo(f"error: {said}", err=True)
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


@contextmanager
def _for_the_report() -> Iterator[None]:
    """Keeps standard output free for it: Ray prints there when a worker or a node dies, and cannot be told not to."""
    with redirect_stdout(sys.stderr):
        yield


def _show_traceback(ctx: typer.Context) -> None:
    if ctx.obj:
        traceback.print_exc()


def _preset(config: Path | None) -> Preset:
    return load_preset(config) if config else Preset()


def _run_options(preset: Preset, workers: int | None, address: str | None, overwrite: bool | None) -> RunOptions:
    return combine(RunOptions, preset.run, {"workers": workers, "address": address, "overwrite": overwrite})


def _print_report(report: Report | TrainReport, as_json: bool) -> None:
    if as_json:
        _print_json(report.to_dict())
    else:
        _print("\n".join(report.lines()))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _print_json(value: object) -> None:
    _print(_json(value))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise UsageError(f"expected numbers with commas between them, such as 40,60,75, not {text!r}") from None


def _refuse_unwritable(paths: list[Path], overwrite: bool) -> None:
    """Raises UsageError for files that could not be written at the end of a long run, or would replace another."""
    for i, path in enumerate(paths):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no directory {path.parent}")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: {'is a directory' if path.is_dir() else f'{path.parent} cannot be written to'}")
        if path in paths[:i]:
            raise UsageError(f"{path}: named twice as an output")
        if path.exists() and not overwrite:
            raise OutputExists(f"{path} exists; choose another name, or replace it with --overwrite")


def _print(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        # the reader has seen enough, as in `zippy-batch stats ARCHIVE | head`, which says nothing about the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise WriteError(f"the report cannot be written to standard output: {error.strerror}") from error


def _hint(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
