"""Turns the options that `config` declares into flags of a command, and flags into options.

A command is written with whole objects of options, as `archive(ctx, source, output, options: ArchiveOptions, run:
RunOptions)`. `as_command` puts one flag for each declared option in their place, and --config for a preset.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from zippy_batch.cli.outcome import outcome
from zippy_batch.config import TABLES, Option, Preset, combine, load_preset, option_of

KINDS = {kind: table for table, kind in TABLES.items()}
"""Class of options -> the table of a preset that sets them."""


def flag(*names: str, help: str, default: object = None, metavar: str | None = None) -> Any:
    """An option that is None when it is not given, because a preset may set it; its help names the real default."""
    shown = help if default in (None, "", False) else f"{help}  [default: {default}]"
    return typer.Option(*names, help=shown, metavar=metavar, show_default=False)


def declared(kind: type, name: str, help: str | None = None) -> Any:
    """The flag of one option of this class, for a command that takes it alone."""
    (one,) = (one for one in fields(kind) if one.name == name)
    option = option_of(one)
    default = one.default if option.shown is None else option.shown
    metavar = "|".join(option.choices) if option.choices and option.words is None else option.metavar
    return flag(*(option.flags or (_flag_name(name),)), help=help or option.help, default=default, metavar=metavar)


_LAST = ("progress", "quiet", "as_json")
"""Parameters whose flags come after all others."""
Config = Annotated[
    Path | None,
    flag(
        "--config",
        metavar="NAME|FILE",
        help="Preset: a built-in one (laptop, gpu, cluster, train) or a TOML file; flags on the command line win over "
        "it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON on standard output.")]
ProgressFlag = Annotated[
    str | None,
    flag(
        "--progress",
        metavar="auto|json|off",
        help="Progress on standard error: a bar or a line now and then, or JSON, a line a second.",
        default="auto",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors alone, and the report only with --json.")]
ArchivePath = Annotated[
    str, typer.Argument(metavar="ARCHIVE", help="A .parquet file or a directory of parts; a path or an s3:// URI.")
]


class PlainCommand(TyperCommand):
    """Its help shows arguments by their names, without the types that they have in Python."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for argument in self.params:
            if isinstance(argument, TyperArgument):
                usage = argument._usage_display_name().replace("{", "").replace("}", "")
                vars(argument).update(display_type_rich=_no_type, _usage_display_name=partial(str, usage))


def _no_type(ctx: typer.Context) -> None:
    return None


def as_command(
    when_interrupted: str, without: tuple[str, ...] = (), help: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a command, whose first parameter is its typer.Context.

    What goes wrong inside becomes one message and an exit code; `when_interrupted` ends the message of an interrupt.
    Options in `without` have no flag and stay at their defaults; `help` replaces what is declared for an option.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        kinds = {name: hint for name, hint in hints.items() if isinstance(hint, type) and hint in KINDS}

        def command(ctx: typer.Context, **given: Any) -> None:
            with outcome(ctx, when_interrupted, {k: v for kind in kinds.values() for k, v in _renamed(kind).items()}):
                config = given.pop("config", None)
                preset = load_preset(config) if config else Preset()
                for name, kind in kinds.items():
                    given[name] = _made(kind, preset, {one.name: given.pop(one.name, None) for one in fields(kind)})
                function(ctx, **given)

        parameters = list(_parameters(function, hints, without, help or {}))
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _flag_name(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _renamed(kind: type) -> dict[str, str]:
    """Option -> its flag, where that is not --its-name."""
    flags = {one.name: option_of(one).flags[0].split("/")[0] for one in fields(kind) if option_of(one).flags}
    return {name: flag for name, flag in flags.items() if flag != _flag_name(name)}


def _made(kind: Any, preset: Preset, given: Mapping[str, Any]) -> Any:
    options = {one.name: option_of(one) for one in fields(kind)}
    return combine(kind, getattr(preset, KINDS[kind]), {name: _value(options[name], given[name]) for name in given})


def _value(option: Option, given: Any) -> Any:
    """What a flag says, as the option has it; None where it is not given."""
    if isinstance(given, list):
        return tuple(given) or None
    return option.words[given] if option.words and given is not None else given


def _parameters(
    function: Callable[..., None], hints: Mapping[str, Any], without: tuple[str, ...], help: Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    """Those of the command, with one for each option in place of the object; `_LAST` come last."""
    own = list(inspect.signature(function).parameters.values())
    for parameter in own:
        kind = hints[parameter.name]
        if isinstance(kind, type) and kind in KINDS:
            yield from _flags_of(kind, without, help)
        elif parameter.name not in _LAST:
            yield parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
    if any(isinstance(hint, type) and hint in KINDS for hint in hints.values()):
        yield _parameter("config", Config, None)
    for parameter in own:
        if parameter.name in _LAST:
            yield parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)


def _flags_of(kind: type, without: tuple[str, ...], help: Mapping[str, str]) -> Iterator[inspect.Parameter]:
    types = typing.get_type_hints(kind)
    for one in fields(kind):
        option = option_of(one)
        if option.is_flag and one.name not in without:
            taken: Any = bool if option.words else types[one.name]
            taken = list[str] if typing.get_origin(taken) is tuple else taken
            yield _parameter(one.name, Annotated[taken | None, declared(kind, one.name, help.get(one.name))], None)


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
