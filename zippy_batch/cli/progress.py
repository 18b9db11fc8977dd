"""Where a run stands, on standard error: a bar on a terminal, a line now and then elsewhere (a log, a Ray job)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from zippy_batch.run.report import Progress, size_text

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def showing(verb: str, stream: TextIO | None = None) -> Iterator[Callable[[Progress], None]]:
    """A watcher for the pipeline that shows what it is told on `stream`, which is standard error when not given."""
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        yield LineWriter(verb, out)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[facts]}"),
    )
    with Bar(*columns, console=Console(file=out), transient=True) as bar:
        task = bar.add_task(verb, total=None, facts="starting")

        def watch(p: Progress) -> None:
            bar.update(task, completed=p.images, total=p.images_total, facts=", ".join(facts(p)))

        yield watch


class LineWriter:
    """One line at most every `every_s` seconds; a run that is over sooner writes none."""

    def __init__(self, verb: str, out: TextIO, every_s: float = LINE_EVERY_S) -> None:
        self._verb = verb
        self._out = out
        self._every_s = every_s
        self._due_s = time.monotonic() + every_s

    def __call__(self, p: Progress) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        done = f"{p.images} of {p.images_total} images"
        print(f"{self._verb}: {', '.join([done, *facts(p)])}", file=self._out, flush=True)


def facts(p: Progress) -> list[str]:
    """Speed, size so far and time left, as far as they are known yet."""
    if not p.images:
        return ["starting"]
    said = [f"{p.images_per_s:.0f} images/s", f"{p.megabytes_per_s:.2f} MB/s"]
    if p.ratio is not None:
        said.append(f"{size_text(p.source_bytes)} to {size_text(p.stored_bytes)} ({p.ratio:.2f}x)")
    if p.seconds_left is not None and p.images < p.images_total:
        said.append(f"{duration_text(p.seconds_left)} left")
    return said


def duration_text(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
