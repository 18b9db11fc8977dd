"""What a submitted job does on the cluster: `python -m zippy_batch.cli.job_entry VERSION COMMAND ...`.

It checks versions and paths on every machine, and then runs the command, with --address auto.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from zippy_batch import __version__
from zippy_batch.cli.app import app
from zippy_batch.cli.job_client import CHECKED, Paths, framed, parameters_of, platform_text, say
from zippy_batch.errors import UsageError, ZippyError
from zippy_batch.run.executor import connected

LOOK_S = 180.0
"""How long the machines of a cluster have to say what they see; a worker has to start on each."""


def check_cluster(version: str, paths: Paths) -> str:
    """A line on the cluster that this process has joined, if every machine has this version and sees these paths.

    Raises UsageError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if version != __version__:
        raise UsageError(f"zippy-batch is {version} where the job comes from and {__version__} on the cluster; use one")
    nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    look: Any = ray.remote(num_cpus=0)(_look)
    asked = {
        name: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            paths.needed, paths.made
        )
        for node, name in nodes.items()
    }
    problems: dict[str, list[str]] = {}
    for machine, answer in asked.items():
        for problem in _seen(answer, version):
            problems.setdefault(problem, []).append(machine)
    if problems:
        said = "; ".join(f"{problem} (on {_some(machines, len(asked))})" for problem, machines in problems.items())
        raise UsageError(f"{said}. Every machine must see the same paths and have the same version")
    machines = f"{len(asked)} machine{'s' if len(asked) > 1 else ''}"
    return f"{CHECKED} {machines}: zippy-batch {version}, {platform_text()}"


def _seen(answer: Any, version: str) -> list[str]:
    """What is wrong on the machine that answers."""
    import ray

    try:
        theirs, problems = ray.get(answer, timeout=LOOK_S)
    except ray.exceptions.GetTimeoutError:
        return [f"no answer within {LOOK_S:g} s"]
    except ray.exceptions.RayError as error:
        return [f"no worker starts: {str(error).splitlines()[0]}"]
    return problems if theirs == version else [f"zippy-batch is {theirs or 'missing'}, not {version}", *problems]


def _some(machines: Sequence[str], of: int) -> str:
    shown = ", ".join(sorted(machines)[:3]) + (", ..." if len(machines) > 3 else "")
    return f"{len(machines)} of {of} machines: {shown}"


def _look(needed: Sequence[str], made: Sequence[str]) -> tuple[str | None, list[str]]:
    """What a machine sees: version, and what is wrong with the paths."""
    try:
        from zippy_batch import __version__ as version
    except ImportError:
        return None, []
    problems = [f"{path} is not there" for path in needed if not os.access(path, os.R_OK)]
    for path in made:
        parent = str(Path(path).parent)
        if not os.path.isdir(parent):
            problems.append(f"{path} cannot be made, there is no directory {parent}")
        elif not os.access(parent, os.W_OK):
            problems.append(f"{path} cannot be made, {parent} is not to be written to")
    return version, problems


def main() -> None:
    """`python -m zippy_batch.cli.job_entry VERSION COMMAND ...`, on the cluster."""
    version, *arguments = sys.argv[1:]
    try:
        paths = Paths.of(parameters_of(typer.main.get_command(app), arguments))
        with connected("auto", cpus=None):
            say(check_cluster(version, paths))
            _run(arguments)
    except ZippyError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _run(arguments: Sequence[str]) -> None:
    """Raises SystemExit."""
    report = io.StringIO()
    try:
        with redirect_stdout(report):
            app(arguments, prog_name="zippy-batch")
    finally:
        print(framed(report.getvalue()), end="", flush=True)


if __name__ == "__main__":
    main()
