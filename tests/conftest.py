"""What tests share: real pictures where there are any, drawn faces everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# before anything imports Ray: tests never report usage, and a run of them stays on the cores it was given
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real faces and odd files beside the repository; where they are missing, the tests that need them are skipped."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no real pictures here (../shared is missing)")
    return path


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn faces of 42x42, as JPEG files. Read only."""
    from synthetic_faces import draw_faces

    directory = tmp_path_factory.mktemp("drawn") / "faces"
    draw_faces(directory, 40)
    return directory
