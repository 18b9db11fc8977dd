"""What tests of pages share: a browser, the command line, and text that must stay text."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from zippy_batch.cli.app import app

EVIL = '"\'><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;'
"""As a label; a path has it without the slash."""


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in args])
    return result.exit_code, result.output


def chromium(*args: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on the PATH")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--enable-logging=stderr", "--v=0")  # fmt: skip
    return subprocess.run([program, *flags, *map(str, args)], capture_output=True, text=True, timeout=90, check=True)
