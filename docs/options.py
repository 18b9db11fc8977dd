"""Writes the tables of options in docs/usage.md: what `--help` of each command says, as Markdown.

python docs/options.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from zippy_batch.cli.app import app

PAGE = Path(__file__).with_name("usage.md")
MARKED = re.compile(r"(<!-- options of (\w+) -->\n).*?(<!-- end -->)", re.S)


def table(command: str) -> str:
    group: Any = typer.main.get_command(app)
    rows = [_row(option) for option in group.commands[command].params if option.param_type_name == "option"]
    return "\n".join(["| option | what it does |", "|---|---|", *rows, ""])


def _row(option: Any) -> str:
    flags = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    flags[-1] += f" {option.metavar}" if option.metavar else ""
    text = re.sub(r"  \[default: (.*)\]$", r" Default: \1.", option.help)
    cells = ", ".join(f"`{flag}`" for flag in flags), text
    return " | ".join(["", *(cell.replace("|", r"\|") for cell in cells), ""]).strip()


def with_tables(text: str) -> str:
    """The page with the table between each pair of marks made anew."""
    return MARKED.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
