"""Every option, its unit, its default and its help: written once, here.

What changes the archive's bytes is in `ArchiveOptions` and is part of a run's fingerprint; what only changes how fast
they are made is in `RunOptions` and is not. A field's `Option` carries what the command line and docs/usage.md say of
it; types, words and ranges are checked when an object is made, in Python as on the command line. Presets are TOML files
with one table for each of the classes below. A table or a key that none of them has is an error, so that a misspelt
option never goes unnoticed.
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
MAX_ROW_BYTES = 1 << 30
"""More than any file of an archive has."""


@dataclass(frozen=True)
class Option:
    """How an option is declared on the command line, and which values it may have."""

    help: str
    flags: tuple[str, ...] = ()
    """None for --its-name; for a bool, --its-name or --its-name/--no-its-name."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shown: str | None = None
    """What help names as the default, where that is not the default's own text."""
    words: Mapping[bool, str] | None = None
    """Words that a flag stands for: what the option is with it, and with its --no- form."""
    is_flag: bool = True
    """False for an option that only Python and presets have."""


def _option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(help, flags, **more)})


def option_of(of: Any) -> Option:
    """The declaration of a field of one of the classes below."""
    return typing.cast(Option, of.metadata["option"])


def _device() -> Any:
    return _option("auto", "Where the networks run.", choices=DEVICES)


def _max_row_bytes() -> Any:
    return _option(
        MAX_ROW_BYTES,
        "Most bytes that one file, or the pixels of one picture at 3 bytes each, may have; what has more counts as "
        "damaged, and no memory is taken for it. Decoding takes some 40 bytes for one of pixels, a file that was kept "
        "3 to 4.",
        metavar="N",
        low=1,
    )


def _batch_size() -> Any:
    return _option(128, "Images per pass through the networks, fewer of large ones.", metavar="N", low=1)


@dataclass(frozen=True)
class ArchiveOptions:
    """What decides the archive's bytes."""

    quality: int = _option(75, "Higher is better and bigger.", "--quality", "-q", metavar="1..100", low=1, high=100)
    min_psnr: float | None = _option(
        None,
        "Floor for every image, in the file that restore writes by default. Its quality is raised until it gets there; "
        "an image that cannot is stored exactly or kept as it is.",
        metavar="DB",
    )
    effort: int = _option(
        0,
        "How long to look for fewer bytes at the same quality, in gradient steps on each image that the lossy codec "
        "stores: 0 takes none, 9 takes 300 and a thousand times as long.",
        metavar="0..9",
        low=0,
        high=9,
    )
    verify: bool = _option(
        True,
        "Decode every image again before it counts as archived. Without that a run is faster, but the archive says "
        "nothing about its quality, and a fault shows only on restore.",
        "--verify/--no-verify",
        shown="verify",
    )
    strict: bool = _option(
        False,
        "Fail on a file that would be kept as it is, unless it is only smaller so.",
        "--strict/--lenient",
        shown="lenient",
    )
    exact: str = _option(
        "auto",
        "Store JPEG files so that the very same files come back, and keep everything else as it is; --quality then has "
        "no meaning. Without either, a JPEG is stored exactly where that takes no more bytes than lossy, or where the "
        "lossy codec fails on it; with --no-exact, never.",
        "--exact/--no-exact",
        choices=EXACT,
        words={True: "always", False: "never"},
    )
    model: str = _option(
        "faces",
        "Model of the lossy codec: a built-in one, or a .safetensors file, which is then embedded in the archive.",
        metavar="NAME|FILE",
    )
    exact_model: str = _option("exact", "Model of the exact codec, likewise.", metavar="NAME|FILE")
    input: str = _option(
        "auto",
        "What the source is; auto tells by its name. tar and others take a directory of such files, too.",
        choices=INPUTS,
    )
    labels: str = _option(
        "auto",
        "Where the column label comes from: what the source itself has as labels, the name of the directory that a "
        "file is in, nowhere, or a table (.csv, .tsv, .txt) with a line for each picture.",
        metavar="|".join((*LABELS, "FILE")),
    )
    label_pattern: str | None = _option(
        None,
        "Take labels from the names of files: what is in parentheses, as in '^([0-9]+)_'.",
        metavar="REGEX",
    )
    image_column: str | None = _option(
        None,
        "Column of images of a Parquet file.",
        metavar="NAME",
        shown="one that is known, or the only one of its type",
    )
    name_column: str | None = _option(
        None,
        "Column of a Parquet file, or of the table of --labels, that says how pictures are called.",
        metavar="NAME",
        shown="one that is known",
    )
    label_column: str | None = _option(None, "Likewise for labels.", metavar="NAME", shown="one that is known")
    encoding: str | None = _option(
        None,
        "Code page, such as cp932 or gbk, of names in a zip and of labels that are not in UTF-8.",
        metavar="NAME",
    )
    include: tuple[str, ...] = _option(
        (),
        "Archive only the files that match, or that are in a folder that does, e.g. '*.jpg'; given several times, "
        "those that any matches.",
        metavar="GLOB",
        shown="",
    )
    exclude: tuple[str, ...] = _option(
        (),
        "Leave out the files that match, and folders with all that is in them, e.g. __MACOSX; may be given several "
        "times.",
        metavar="GLOB",
        shown="",
    )
    exclude_from: Path | None = _option(
        None, "Leave out what any line of this file matches; # begins a comment.", metavar="FILE"
    )
    leave_out: bool = _option(
        False,
        "Leave out, and name, what an archive has no place for, as other columns of a Parquet file; it is an error "
        "otherwise.",
    )
    shard_size: int = _option(
        0,
        "Images per shard, the unit of work and of loss; 0 chooses. Part of the archive's bytes.",
        metavar="N",
        low=0,
        shown="chosen",
    )
    batch_size: int = _batch_size()
    device: str = _device()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if isinstance(self.exclude_from, str):
            object.__setattr__(self, "exclude_from", Path(self.exclude_from))
        _check(self)
        check_labels(self.labels, self.label_pattern)
        check_encoding(self.encoding)
        if self.min_psnr is not None and not (math.isfinite(self.min_psnr) and 0 < self.min_psnr < 99):
            raise OptionError(f"{{min_psnr}} must be between 0 and 99 dB, not {self.min_psnr}", "min_psnr")
        if self.min_psnr is not None and not self.verify:
            raise OptionError(
                "{min_psnr} needs the verification that {no_verify} leaves out; drop one of the two",
                "min_psnr",
                "no_verify",
            )


@dataclass(frozen=True)
class RunOptions:
    """What decides how the run goes, and nothing about the archive's bytes."""

    workers: int = _option(
        0,
        "Worker processes; 1 stays in this process, without Ray, and 0 chooses. Never changes the result.",
        metavar="N",
        low=0,
        shown="chosen",
    )
    address: str | None = _option(
        None, "Ray cluster to join; 'auto' finds the one this machine is part of.", metavar="HOST:PORT"
    )
    overwrite: bool = _option(False, "Replace what is already there.")

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class RestoreOptions:
    format: str = _option("jpeg", "What images are restored as.", choices=FORMATS)
    jpeg_quality: int | None = _option(
        None,
        "One quality for all JPEG files.",
        metavar="1..100",
        low=1,
        high=100,
        shown="each source's own quantisation tables",
    )
    select: tuple[str, ...] = _option(
        (),
        "Only the paths that match, e.g. 'id_0001/*.jpg'; given several times, those that any matches.",
        metavar="GLOB",
    )
    where: str | None = _option(None, "Only the rows whose columns fulfil it, e.g. 'psnr < 30'.", metavar="CONDITION")
    keep_going: bool = _option(False, "Restore what is whole, list what is damaged, exit 1.")
    reference: Path | None = _option(None, "The originals, to measure the restored files against.", metavar="DIR")
    sync: bool = _option(
        True,
        "Bring every file to disk, proof against a power cut, before the restore counts as done.",
        "--sync/--no-sync",
        shown="sync",
    )
    max_row_bytes: int = _max_row_bytes()
    batch_size: int = _batch_size()
    device: str = _device()

    def __post_init__(self) -> None:
        if isinstance(self.select, str):
            object.__setattr__(self, "select", (self.select,))
        if isinstance(self.reference, str):
            object.__setattr__(self, "reference", Path(self.reference))
        _check(self)
        if self.jpeg_quality is not None and self.format != "jpeg":
            raise OptionError(
                f"{{jpeg_quality}} is for JPEG files, but {{format}} is {self.format}; drop one of the two",
                "jpeg_quality",
                "format",
            )


@dataclass(frozen=True)
class AppendOptions:
    """What is added to an archive; how it is coded, the archive says."""

    update: bool = _option(False, "Also files whose size or time has changed; they replace their rows.")
    checksum: bool = _option(
        False,
        "Have --update go by what is in a file: its bytes where it is stored exactly or as it is, else the quality "
        "that its row promises. Every file that the archive has is read.",
    )
    input: str = _option("auto", "What the source is; auto tells by its name.", choices=INPUTS)
    labels: str | None = _option(
        None,
        "Where the labels of the new files come from: as for archive.",
        metavar="|".join((*LABELS, "FILE")),
        shown="what the archive records",
    )
    device: str = _device()

    def __post_init__(self) -> None:
        _check(self)
        if self.checksum and not self.update:
            raise OptionError("{checksum} says how {update} compares; give both", "checksum", "update")
        if self.labels is not None:
            check_labels(self.labels, None)


@dataclass(frozen=True)
class EraseOptions:
    """What is said of an erasure."""

    receipt: Path | None = _option(None, "Where the receipt goes.", metavar="FILE", shown="beside the archive")
    sign: Path | None = _option(None, "Sign the receipt with this Ed25519 key, a PEM file.", metavar="KEY")

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class VerifyOptions:
    """How closely an archive is looked at."""

    input: str = _option("auto", "What the originals are.", choices=INPUTS)
    deep: bool = _option(False, "Decode every image, beyond the checksums.")
    sample: int | None = _option(
        None, "Look at N rows, chosen at random, and at no file as a whole.", metavar="N", low=1
    )
    max_row_bytes: int = _max_row_bytes()

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class TrainOptions:
    """What a model is trained for, and how."""

    codec: str = _option("latent", "Lossy (latent), or exact for JPEG files.", choices=TRAINABLE_CODECS)
    start: str | None = _option(
        None,
        "Model to adapt; that takes minutes, where a new one takes hours.",
        "--from",
        metavar="NAME|FILE",
    )
    minutes: float = _option(
        60.0,
        "Training time, interrupted parts included; reading the images and writing the model come on top.",
        metavar="M",
    )
    sizes: str = _option(
        "own",
        "What for: the images as they are (own), shrunk to sizes in pixels, both, or the mix that the built-in models "
        "were trained on.",
        metavar="own,WxH,...|mixed",
    )
    loss: str = _option("mse", "Distortion of the lossy codec.", choices=LOSSES)
    rate: float = _option(1.0, "Factor on the learning rates; lower it where training diverges.", metavar="X")
    mirror: bool = _option(
        True,
        "Turn half of the images left to right, except JPEG files whose blocks that would move.",
        "--mirror/--no-mirror",
        shown="mirror",
    )
    seed: int = _option(0, "Random seed.", metavar="N", low=0)
    name: str = _option("", "Name in the model's card; the output's name where empty.", is_flag=False)
    notice: str = _option(
        "", "For the model's card: its images' licence, what it may be used for.", metavar="TEXT", shown=""
    )
    device: str = _device()

    def __post_init__(self) -> None:
        _check(self)
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise OptionError(f"{{minutes}} must be above 0, not {self.minutes}", "minutes")
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
    verify: Mapping[str, Any] = field(default_factory=dict)
    append: Mapping[str, Any] = field(default_factory=dict)
    erase: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


Options = TypeVar(
    "Options", ArchiveOptions, RunOptions, RestoreOptions, VerifyOptions, AppendOptions, EraseOptions, TrainOptions
)

TABLES: Mapping[str, type] = {
    "archive": ArchiveOptions,
    "run": RunOptions,
    "restore": RestoreOptions,
    "verify": VerifyOptions,
    "append": AppendOptions,
    "erase": EraseOptions,
    "train": TrainOptions,
}


def preset_path(preset: Path) -> Path:
    """The file of a preset: of a built-in one, where this is its name and no file here."""
    built_in = Path(__file__).with_name("presets") / f"{preset}.toml"
    return built_in if str(preset) in builtin_presets() and not preset.exists() else preset


def builtin_presets() -> list[str]:
    return sorted(path.stem for path in Path(__file__).with_name("presets").glob("*.toml"))


def load_preset(path: Path) -> Preset:
    """A preset by its name, where it is built in, or by its path.

    Raises UsageError for a file that cannot be read, is not TOML, or has an unknown table, key or kind of value.
    """
    path = preset_path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        known = f"built in are {', '.join(builtin_presets())}"
        raise UsageError(f"cannot read the preset {path}: {error.strerror or error}; {known}") from error
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
    kinds = _kinds(TABLES[table])
    if key not in kinds:
        raise UsageError(f"{path}: unknown key {key!r} in [{table}]{_nearest(key, list(kinds))}")
    allowed, choices = kinds[key], _declared(TABLES[table])[key].choices
    if tuple in allowed and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if type(value) in allowed or (tuple in allowed and isinstance(value, str)):
        return value
    if float in allowed and type(value) is int:
        return float(value)
    if Path in allowed and isinstance(value, str):
        return Path(value)
    wanted = _kind_text(allowed).replace("Path", "str").replace("tuple", "str") + (
        f" ({', '.join(choices)})" if choices else ""
    )
    raise UsageError(f"{path}: {key!r} in [{table}] must be {wanted}, not {type(value).__name__} ({value!r})")


def _kinds(options: type) -> dict[str, tuple[type, ...]]:
    """The types that each option may have."""
    hints = typing.get_type_hints(options)
    found = {}
    for name in (one.name for one in fields(options)):
        kinds = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        found[name] = tuple(typing.get_origin(kind) or kind for kind in kinds)
    return found


def _declared(options: type) -> dict[str, Option]:
    return {one.name: option_of(one) for one in fields(options)}


def _kind_text(kinds: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in kinds if kind is not types.NoneType)


def _check(options: Any) -> None:
    """Raises OptionError for a value of another type, outside its range, or that is none of its words."""
    kinds = _kinds(type(options))
    for name, option in _declared(type(options)).items():
        value = getattr(options, name)
        if not _is_one_of(value, kinds[name]):
            wanted = _kind_text(kinds[name]) + (f" ({', '.join(option.choices)})" if option.choices else "")
            raise OptionError(f"{{{name}}} must be {wanted}, not {type(value).__name__} ({value!r})", name)
        if option.choices and value not in option.choices:
            meant = _meant(str(value), option.choices)
            raise OptionError(f"{{{name}}} must be one of {', '.join(option.choices)}, not {value!r}{meant}", name)
        if value is not None and option.low is not None:
            _check_range(name, value, option.low, option.high)


def _is_one_of(value: object, kinds: Sequence[type]) -> bool:
    """Whether Python takes it for one of these types; a bool is no number."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"{low} to {high}" if high is not None else f"{low} or more"
        raise OptionError(f"{{{name}}} must be {wanted}, not {value}", name)


def labels_kind(labels: str, label_pattern: str | None) -> str:
    """One of LABELS, or table or pattern."""
    return "pattern" if label_pattern is not None else labels if labels in LABELS else "table"


def check_labels(labels: str, label_pattern: str | None) -> None:
    """Raises UsageError."""
    if labels not in LABELS and not re.search(r"[./\\]", labels):
        meant = _meant(labels, LABELS)
        wanted = f"{', '.join(LABELS)}, the path of a table"
        raise OptionError(f"{{labels}} must be one of {wanted}, not {labels!r}{meant}", "labels")
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
