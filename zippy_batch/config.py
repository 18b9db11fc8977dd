"""Every knob, its unit and its default.

What changes the archive's bytes is in `ArchiveOptions` and is part of a run's fingerprint; what only changes how fast
they are made is in `RunOptions` and is not. Presets are TOML files with one table for each of the classes below;
a table or a key that none of them has is an error, so that a misspelt knob never goes unnoticed.
"""

from __future__ import annotations

import codecs
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from zippy_batch.errors import OptionError, UsageError

DEVICES = ("auto", "cpu", "cuda")
FORMATS = ("jpeg", "png", "webp")
EXACT = ("auto", "always", "never")
TRAINABLE_CODECS = ("latent", "exact")
LOSSES = ("mse", "ssim", "mix")
INPUTS = ("auto", "files", "list", "tar", "zip", "parquet", "recordio")
LABELS = ("auto", "folders", "none")
CHOICES = {
    "device": DEVICES,
    "format": FORMATS,
    "exact": EXACT,
    "codec": TRAINABLE_CODECS,
    "loss": LOSSES,
    "input": INPUTS,
    "labels": LABELS,
}
"""Words that a knob may be, by its name."""


@dataclass(frozen=True)
class ArchiveOptions:
    """What decides the archive's bytes."""

    quality: int = 75
    """1..100; lambda of the lossy codec grows with it."""
    min_psnr: float | None = None
    """Floor in dB for every image in what restore writes by default; None for no floor."""
    verify: bool = True
    """Decode every payload again before it is committed, and fill the psnr and ssim columns."""
    strict: bool = False
    """Fail on what would be kept raw."""
    exact: str = "auto"
    """Which JPEG files are stored so that the very same files come back: auto takes those for which that costs no more
    than the lossy codec, always takes every one and codes nothing else, never takes none."""
    model: str = "faces"
    """Of the lossy codec: name of a built-in model, or path of a .safetensors file."""
    exact_model: str = "exact"
    """Of the exact codec, likewise."""
    shard_size: int = 0
    """Images per shard; 0 chooses."""
    batch_size: int = 64
    """Images per batch through the networks."""
    device: str = "auto"
    """auto, cpu or cuda; auto is settled when the run is planned."""
    input: str = "auto"
    """What the source is; auto tells by its name, and takes a directory for a directory of files."""
    labels: str = "auto"
    """Where the column label comes from: auto takes what the source has as labels, folders the name of the directory
    that a file is in, none makes no such column; anything else is the path of a table with a line for each picture."""
    label_pattern: str | None = None
    """Regular expression whose groups find the label in the name of each file."""
    image_column: str | None = None
    """Of a Parquet file; None takes the one that is known by its name, or the only one of a fitting type."""
    name_column: str | None = None
    """Of a Parquet file or of a table of labels: how a picture is called; None takes one that is known by its name."""
    label_column: str | None = None
    """Of a Parquet file or of a table of labels, likewise."""
    encoding: str | None = None
    """Of names in a zip that are not said to be UTF-8, and of labels that are not: a code page, as Python names it."""
    leave_out: bool = False
    """Leave out what an archive has no place for, and say so, instead of refusing it."""

    def __post_init__(self) -> None:
        _in_range("quality", self.quality, 1, 100)
        if self.min_psnr is not None and not (math.isfinite(self.min_psnr) and 0 < self.min_psnr < 99):
            raise OptionError(f"{{min_psnr}} must be between 0 and 99 dB, not {self.min_psnr}", "min_psnr")
        if self.min_psnr is not None and not self.verify:
            raise OptionError(
                "{min_psnr} needs the verification that {no_verify} leaves out; drop one of the two",
                "min_psnr",
                "no_verify",
            )
        _one_of("exact", self.exact, EXACT)
        _one_of("input", self.input, INPUTS)
        check_labels(self.labels, self.label_pattern)
        check_encoding(self.encoding)
        _in_range("shard_size", self.shard_size, 0, None)
        _in_range("batch_size", self.batch_size, 1, None)
        _one_of("device", self.device, DEVICES)


@dataclass(frozen=True)
class RunOptions:
    """What decides how the run goes, and nothing about the archive's bytes."""

    workers: int = 0
    """Worker processes; 0 chooses, 1 stays in this process without Ray."""
    address: str | None = None
    """Ray cluster to join, e.g. "auto" or "HOST:6379"; None starts Ray here when it pays."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        _in_range("workers", self.workers, 0, None)


@dataclass(frozen=True)
class RestoreOptions:
    format: str = "jpeg"
    """jpeg, png or webp."""
    jpeg_quality: int | None = None
    """1..100 for every file; None takes the source's own quantisation tables, or 95 where it had none."""
    select: tuple[str, ...] = ()
    """Globs over archived paths, of which one must match; none take all. One may be given as a string."""
    where: str | None = None
    """Condition on columns, e.g. "psnr < 30" (see `archives/where.py`); None takes all."""
    keep_going: bool = False
    """Restore what is whole, list what is damaged, exit 1."""
    reference: Path | None = None
    """Directory of originals to measure the restored files against."""
    batch_size: int = 64
    device: str = "auto"
    sync: bool = True
    """Have every file on disk, proof against a power cut, before the restore counts as done."""

    def __post_init__(self) -> None:
        if isinstance(self.select, str):
            object.__setattr__(self, "select", (self.select,))
        _one_of("format", self.format, FORMATS)
        if self.jpeg_quality is not None:
            _in_range("jpeg_quality", self.jpeg_quality, 1, 100)
            if self.format != "jpeg":
                raise OptionError(
                    f"{{jpeg_quality}} is for JPEG files, but {{format}} is {self.format}; drop one of the two",
                    "jpeg_quality",
                    "format",
                )
        _in_range("batch_size", self.batch_size, 1, None)
        _one_of("device", self.device, DEVICES)


@dataclass(frozen=True)
class TrainOptions:
    """What a model is trained for, and how."""

    codec: str = "latent"
    """latent (lossy) or exact."""
    start: str | None = None
    """Model to go on from: a name or a file; None starts from nothing."""
    minutes: float = 60.0
    """Of training, over all resumed parts of the run."""
    sizes: str = "own"
    """What it is trained for: own (the images as they are), WIDTHxHEIGHT to shrink them to, several of these with
    commas between, or mixed, which the built-in models were trained on."""
    loss: str = "mse"
    """Distortion of the lossy codec: mse, ssim, or half of each (mix)."""
    rate: float = 1.0
    """Factor on the learning rates."""
    mirror: bool = True
    """Turn half of the images left to right, except JPEG files whose blocks that would move."""
    seed: int = 0
    name: str = ""
    """In the model's card; the output's name where empty."""
    notice: str = ""
    """In the model's card: where the images come from, and what the model may be used for."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _one_of("codec", self.codec, TRAINABLE_CODECS)
        _one_of("loss", self.loss, LOSSES)
        _one_of("device", self.device, DEVICES)
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise OptionError(f"{{minutes}} must be above 0, not {self.minutes}", "minutes")
        _in_range("seed", self.seed, 0, None)
        if not 0 < self.rate <= 100:
            raise OptionError(f"{{rate}} must be above 0 and at most 100, not {self.rate}", "rate")
        if self.codec == "exact" and self.loss != "mse":
            raise OptionError("the exact codec has no distortion: {loss} is for the lossy codec alone", "loss")
        self.shrunk_sizes()

    def is_mixed(self) -> bool:
        return self.sizes == "mixed"

    def takes_own(self) -> bool:
        return "own" in self.sizes.split(",")

    def shrunk_sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels. Raises UsageError."""
        if self.is_mixed():
            return []
        found = []
        for word in self.sizes.split(","):
            if word == "own":
                continue
            match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", word)
            if match is None or not all(8 <= int(side) <= 512 for side in match.groups()):
                raise OptionError(
                    f"{{sizes}} must be mixed, or own and WIDTHxHEIGHT of 8 to 512 px, not {word!r}", "sizes"
                )
            found.append((int(match[2]), int(match[1])))
        return found


@dataclass(frozen=True)
class Preset:
    """What a preset file sets, by table; whatever it leaves out keeps its default."""

    archive: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    restore: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


Options = TypeVar("Options", ArchiveOptions, RunOptions, RestoreOptions, TrainOptions)

TABLES: Mapping[str, type[ArchiveOptions] | type[RunOptions] | type[RestoreOptions] | type[TrainOptions]] = {
    "archive": ArchiveOptions,
    "run": RunOptions,
    "restore": RestoreOptions,
    "train": TrainOptions,
}


def load_preset(path: Path) -> Preset:
    """Raises UsageError for a file that cannot be read, is not TOML, or has an unknown table, key or kind of value."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the preset {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a preset: TOML is UTF-8 text, and this is not") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for name, content in tables.items():
        if name not in TABLES:
            raise UsageError(f"{path}: unknown table or key {name!r}{_nearest(name, list(TABLES))}")
        if not isinstance(content, dict):
            raise UsageError(f"{path}: {name!r} must be a table; write [{name}] and its keys below it")
        tables[name] = {key: _checked(path, name, key, value) for key, value in content.items()}
        try:
            TABLES[name](**tables[name])
        except UsageError as error:
            raise UsageError(f"{path}, [{name}]: {error}") from error
    return Preset(**tables)


def combine(options: type[Options], preset: Mapping[str, Any], flags: Mapping[str, Any]) -> Options:
    """Defaults, above them the preset's table, above that the flags that are not None."""
    given = {key: value for key, value in flags.items() if value is not None}
    return options(**{**preset, **given})


def _checked(path: Path, table: str, key: str, value: object) -> object:
    kinds = {f.name: typing.get_type_hints(TABLES[table])[f.name] for f in fields(TABLES[table])}
    if key not in kinds:
        raise UsageError(f"{path}: unknown key {key!r} in [{table}]{_nearest(key, list(kinds))}")
    allowed = typing.get_args(kinds[key]) if isinstance(kinds[key], types.UnionType) else (kinds[key],)
    if allowed == (tuple[str, ...],):
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        allowed = (str,)
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    if Path in allowed and isinstance(value, str):
        return Path(value)
    wanted = " or ".join(kind.__name__ for kind in allowed if kind is not types.NoneType).replace("Path", "str")
    wanted += f" ({', '.join(CHOICES[key])})" if key in CHOICES else ""
    raise UsageError(f"{path}: {key!r} in [{table}] must be {wanted}, not {type(value).__name__} ({value!r})")


def labels_kind(labels: str, label_pattern: str | None) -> str:
    """One of LABELS, or table or pattern."""
    return "pattern" if label_pattern is not None else labels if labels in LABELS else "table"


def check_labels(labels: str, label_pattern: str | None) -> None:
    """Raises UsageError."""
    if labels not in LABELS and not re.search(r"[./\\]", labels):
        _one_of("labels", labels, (*LABELS, "the path of a table"))
    if label_pattern is None:
        return
    if labels != "auto":
        raise UsageError(
            f"label_pattern says where labels come from, and so does labels ({labels}); drop one of the two"
        )
    try:
        groups = re.compile(label_pattern).groups
    except re.error as error:
        raise UsageError(f"label_pattern {label_pattern!r} is no regular expression: {error}") from error
    if not groups:
        raise UsageError(f"label_pattern {label_pattern!r} has no group: put the part that is the label in parentheses")


def check_encoding(encoding: str | None) -> None:
    """Raises UsageError."""
    try:
        known = encoding is None or codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise UsageError(f"encoding {encoding!r} is none that Python knows; there are cp932, gbk, cp1252 and many more")


def _nearest(name: str, known: Sequence[str]) -> str:
    return _meant(name, known) or f"; there is {', '.join(known)}"


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _in_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"{low} to {high}" if high is not None else f"{low} or more"
        raise OptionError(f"{{{name}}} must be {wanted}, not {value}", name)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(
            f"{{{name}}} must be one of {', '.join(known)}, not {value!r}{_meant(str(value), known)}", name
        )
