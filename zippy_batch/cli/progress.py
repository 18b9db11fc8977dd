"""Where a run stands, on standard error: a bar on a terminal, a line now and then elsewhere (a log, a Ray job), or JSON
for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from zippy_batch.errors import UsageError
from zippy_batch.run.report import Progress, count_text, size_text

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""


JSON_EVERY_S = 1.0
"""Seconds between two lines of JSON."""
PROGRESS_MODES = ("auto", "json", "off")


@dataclass(frozen=True)
class Shown:
    """What of a run is shown beside errors and what was asked for as JSON."""

    progress: str = "auto"
    is_quiet: bool = False

    @classmethod
    def of(cls, progress: str | None, quiet: bool) -> Shown:
        """Raises UsageError."""
        if progress not in (None, *PROGRESS_MODES):
            raise UsageError(f"--progress must be one of {', '.join(PROGRESS_MODES)}, not {progress!r}")
        return cls(progress or ("off" if quiet else "auto"), quiet)


@contextmanager
def showing(
    verb: str, shown: Shown | None = None, stream: TextIO | None = None
) -> Iterator[Callable[[Progress], None]]:
    """A watcher for the pipeline that shows what it is told on `stream`, which is standard error when not given."""
    out, mode = sys.stderr if stream is None else stream, (shown or Shown()).progress
    if mode == "off":
        yield lambda progress: None
        return
    if mode == "json":
        json_writer = JsonWriter(verb, out)
        try:
            yield json_writer
        finally:
            json_writer.finish()
        return
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


class JsonWriter:
    """An object a line: at once, then every `every_s` seconds, and where the run stood when it ended."""

    def __init__(self, verb: str, out: TextIO, every_s: float = JSON_EVERY_S) -> None:
        self._verb, self._out, self._every_s = verb, out, every_s
        self._due_s = 0.0
        self._unwritten: Progress | None = None

    def __call__(self, p: Progress) -> None:
        self._unwritten = p
        if time.monotonic() >= self._due_s:
            self.finish()
            self._due_s = time.monotonic() + self._every_s

    def finish(self) -> None:
        p, self._unwritten = self._unwritten, None
        if p is not None:
            print(
                json.dumps({"command": self._verb, "stage": "check" if p.is_check else "work", **json_facts(p)}),
                file=self._out,
                flush=True,
            )


def json_facts(p: Progress) -> dict[str, Any]:
    """Images done, in all and per second, seconds so far and left, bytes read and stored, and shards."""
    return {
        "done": p.images,
        "total": p.images_total,
        "rate": round(p.images_per_s, 2),
        "seconds": round(p.seconds, 3),
        "seconds_left": None if p.seconds_left is None else round(p.seconds_left, 3),
        "source_bytes": p.source_bytes,
        "source_bytes_total": p.source_bytes_total,
        "stored_bytes": p.stored_bytes,
        "shards": p.shards,
        "shards_total": p.shards_total,
    }


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
        done = f"{p.images} of {count_text(p.images_total, 'image')}"
        print(f"{self._verb}: {', '.join([done, *facts(p)])}", file=self._out, flush=True)


def facts(p: Progress) -> list[str]:
    """Speed, size so far and time left, as far as they are known yet."""
    if p.is_check:
        return ["checking what an earlier run finished"]
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
