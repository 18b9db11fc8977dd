"""What goes wrong around merge, erase and append: what stands under a name is old or new, and the next run finishes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["merge", "erase", "append"])
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_a_command_killed_at_any_point_leaves_old_or_new_and_the_next_finishes(
    command: str, name: str, root: Path, tmp_path: Path
) -> None:
    program = [sys.executable, str(root / "tests/living_crash_points.py"), command, str(tmp_path / name)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=root / "tests")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
