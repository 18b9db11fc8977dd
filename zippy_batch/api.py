"""The package's functions for Python, with options as keywords."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zippy_batch.codecs.model_file import ModelSummary, builtin_names, list_models
from zippy_batch.config import AppendOptions, ArchiveOptions, RestoreOptions, RunOptions, TrainOptions, VerifyOptions
from zippy_batch.errors import UsageError
from zippy_batch.run import append as appending
from zippy_batch.run import diff as differ
from zippy_batch.run import erase as erasing
from zippy_batch.run import merge as merging
from zippy_batch.run import pipeline
from zippy_batch.run.append import AppendReport
from zippy_batch.run.copy_rows import CopyReport
from zippy_batch.run.diff import DedupeReport, DiffReport
from zippy_batch.run.erase import EraseReport
from zippy_batch.run.estimate import Estimate
from zippy_batch.run.report import ArchiveReport, Progress, RestoreReport, VerifyReport

if TYPE_CHECKING:
    from zippy_batch.training.session import TrainReport

Options = TypeVar("Options", ArchiveOptions, RestoreOptions, VerifyOptions, AppendOptions, RunOptions)


def archive(
    source: str | Path,
    output: str | Path,
    options: ArchiveOptions | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Any,
) -> ArchiveReport:
    """Archive every file of `source`: a directory, a list, a tar, zip, Parquet or RecordIO file, or the URI of one.

    `output` is one file where it ends in .parquet, else a directory of parts; either may be in an object store. Fields
    of ArchiveOptions and RunOptions may be given as keywords, above `options` and `run`. `progress` is called as work
    goes on, in this thread. An interrupted run goes on when it is called again.

    Raises UsageError before anything is written, OutputExists where `output` is there and `overwrite` is not given, and
    SourceError for a file that cannot be read.
    """
    chosen, chosen_run = _combined(options or ArchiveOptions(), run or RunOptions(), keywords)
    return pipeline.archive(source, output, chosen, chosen_run, progress)


def estimate(
    source: str | Path,
    output: str | Path,
    options: ArchiveOptions | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Any,
) -> Estimate:
    """Say what `archive` would make of the same arguments: bytes, quality, time and disk.

    A sample of 200 files is coded in this process, and nothing is written but to the directory for temporary files.
    Raises what `archive` raises before it writes anything.
    """
    chosen, chosen_run = _combined(options or ArchiveOptions(), run or RunOptions(), keywords)
    return pipeline.estimate(source, output, chosen, chosen_run, progress)


def restore(
    archive: str | Path,
    destination: str | Path,
    options: RestoreOptions | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Any,
) -> RestoreReport:
    """Bring back the files of an archive below `destination`, under their own paths and times.

    Fields of RestoreOptions and RunOptions may be given as keywords; `select` may be one glob or several.

    Raises OutputExists where files are there already and `overwrite` is not given, and DamagedRow at the first damaged
    row, unless `keep_going`: then the report lists what is damaged, and its `exit_code` is 1.
    """
    if not isinstance(keywords.get("select", ""), str):
        keywords["select"] = tuple(keywords["select"])
    chosen, chosen_run = _combined(options or RestoreOptions(), run or RunOptions(), keywords)
    return pipeline.restore(archive, destination, chosen, chosen_run, progress)


def verify(
    archive: str | Path,
    against: str | Path | None = None,
    options: VerifyOptions | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Any,
) -> VerifyReport:
    """Check every row's checksum; with `deep` decode every row; with `against` compare each with its original there.

    Fields of VerifyOptions and RunOptions may be given as keywords. Damage is reported, not raised: the report's
    `exit_code` is 1. Raises ArchiveError for what is not an archive, and UsageError for a `sample` that is to be
    compared with originals.
    """
    chosen, chosen_run = _combined(options or VerifyOptions(), run or RunOptions(), keywords)
    return pipeline.verify(archive, against, chosen, chosen_run, progress)


def stats(archive: str | Path) -> ArchiveReport:
    """Sizes and quality as the archive tells them; no payload is read."""
    return pipeline.stats(archive)


def models(names: Iterable[str | Path] | None = None) -> list[ModelSummary]:
    """Say what is in models: in the built-in ones, or in those of these names and files.

    Raises UsageError for a name that is none, and ModelError for a file that is no model or is damaged.
    """
    return list_models(builtin_names() if names is None else map(str, names))


def train(
    sources: Sequence[str | Path],
    output: str | Path,
    options: TrainOptions | None = None,
    run: RunOptions | None = None,
    watch: Callable[[str], None] = lambda line: None,
    restart: bool = False,
) -> TrainReport:
    """Fit a model to images and write it to `output`, or go on where an earlier run of the same was interrupted.

    `sources` are directories, lists of paths or archives. `watch` is told where the run stands, a line at a time;
    `restart` forgets a run that is there.

    Raises UsageError for options, paths or images that will not do, and ModelError when training diverges.
    """
    from zippy_batch.training import session

    return session.train(sources, Path(output), options, run, watch, restart)


def merge(
    archives: Sequence[str | Path], output: str | Path, prefix: bool = False, overwrite: bool = False
) -> CopyReport:
    """Make one archive of the rows of several. Nothing is decoded: restore writes what it writes of the sources.

    `prefix` puts the name of its archive and a slash before each path; without it, a path that two archives have is
    refused. An interrupted merge goes on when it is called again, and equal archives give equal bytes.

    Raises UsageError before anything is written, OutputExists where `output` is there and `overwrite` is not given,
    ModelError for archives that need two models of one codec, and DamagedRow for a row that is not what was written.
    """
    return merging.merge(archives, output, prefix, overwrite)


def select(
    archive: str | Path,
    output: str | Path,
    where: str | None = None,
    select: str | Sequence[str] = (),
    overwrite: bool = False,
) -> CopyReport:
    """Make an archive of the rows of another that a condition holds for and whose path matches any of the globs.

    Nothing is decoded. Raises what `merge` raises, and UsageError where no row is chosen.
    """
    return merging.select(archive, output, merging.Wish(where, merging.globs_of(select)), overwrite=overwrite)[0]


def split(
    archive: str | Path,
    output: str | Path,
    shares: int | str | Mapping[str, int],
    by: str = "path",
    overwrite: bool = False,
    where: str | None = None,
    select: str | Sequence[str] = (),
) -> dict[str, CopyReport]:
    """Divide the rows of an archive over several: `shares` is their number, or names and shares, as in
    {"train": 90, "validation": 10} or "train=90,validation=10". With "train" for a name, faces.parquet becomes
    faces-train.parquet. Only rows are taken that `select` would take.

    A hash of the path decides, or with `by="label"` one of the label, so that files of a label stay together; a file
    goes to the same part whatever else is in the archive. Raises what `select` raises.
    """
    parts = merging.Split.of(shares, by)
    wish = merging.Wish(where, merging.globs_of(select))
    reports = merging.select(archive, output, wish, parts, overwrite)
    return dict(zip(parts.shares, reports, strict=True))


def append(
    source: str | Path,
    archive: str | Path,
    options: AppendOptions | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    **keywords: Any,
) -> AppendReport:
    """Archive those files of `source` that `archive` does not have, by path, with the archive's options and models.

    Fields of AppendOptions and RunOptions may be given as keywords: `update` also takes files whose size or
    modification time is not that of their row, and with `checksum` those whose content is not. Where nothing is new,
    nothing is written. An interrupted call goes on when it is called again, and the archive is the old or the new one
    meanwhile.

    Raises what `archive` raises, and UsageError while another run works on the archive.
    """
    chosen, chosen_run = _combined(options or AppendOptions(), run or RunOptions(), keywords)
    return appending.append(source, archive, chosen, chosen_run, progress)


def diff(a: str | Path, b: str | Path) -> DiffReport:
    """Compare two archives, without decoding: what only one of them has, and what changed in content, quality or label.

    The report's `exit_code` is 1 where they differ. Raises ArchiveError for damage.
    """
    return differ.diff(a, b)


def dedupe(
    archive: str | Path,
    near: int | None = None,
    run: RunOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> DedupeReport:
    """Find files that an archive has under several paths, by what is stored of them: those whose labels disagree first.

    With `near`, from 0 to 15, pictures that look alike as well: every row is decoded, and a group has those whose
    hashes of 64 bits differ in at most so many. Changes nothing. Raises ArchiveError for damage.
    """
    return differ.dedupe(archive, near, run, progress)


def erase(
    archive: str | Path,
    where: str | None = None,
    paths: Iterable[str | bytes] | None = None,
    receipt: str | Path | None = None,
    sign: str | Path | None = None,
    dry_run: bool = False,
) -> EraseReport:
    """Take the rows that a condition holds for, or those of `paths`, out of an archive for good.

    What held them is written anew without them, everything else is checked, and a receipt is written: a JSON file that
    says when, why and how many, names paths by salted SHA-256 and each file by SHA-256 before and after. `sign` is the
    PEM file of an Ed25519 key (extra `sign`). `dry_run` changes nothing and lists the paths. Copies of the archive are
    not reached.

    Raises UsageError where no row or every row is chosen, and ArchiveError where anything is damaged; then nothing has
    changed.
    """
    key, target = None if sign is None else Path(sign), None if receipt is None else Path(receipt)
    return erasing.erase(archive, erasing.Erasure(where, erasing.as_paths(paths), target, key), dry_run)


def _combined(options: Options, run: RunOptions, keywords: Mapping[str, Any]) -> tuple[Options, RunOptions]:
    """The options with what is given by keyword. Raises UsageError for a keyword that neither has."""
    own = {field.name for field in dataclasses.fields(options)}
    others = {field.name for field in dataclasses.fields(run)}
    for name in keywords.keys() - own - others:
        close = difflib.get_close_matches(name, own | others, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(own | others))}"
        raise UsageError(f"there is no option {name}; {hint}")
    given = {name: value for name, value in keywords.items() if name in own}
    given_run = {name: value for name, value in keywords.items() if name in others}
    return dataclasses.replace(options, **given), dataclasses.replace(run, **given_run)
