"""Ray as tests start it; importing this loads nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def start_ray() -> None:
    """Ray with two CPUs, whose workers can import what lies beside this file."""
    import ray

    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )


def tried_again(start: Callable[[], T], clean_up: Callable[[], object], attempts: int = 4) -> T:
    """What starts nodes of Ray: it gives them half a minute each, which they may not have on a busy machine."""
    for _ in range(attempts - 1):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            clean_up()
    return start()
