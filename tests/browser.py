"""What tests of pages share: a browser, the command line, and text that must stay text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zippy_batch.cli.app import app

EVIL = '"\'><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;'
"""As a label; a path has it without the slash."""


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in args])
    return result.exit_code, result.output


_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
          "--enable-logging=stderr", "--v=0")  # fmt: skip


def _program() -> str:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on the PATH")
    return program


def chromium(*args: object) -> subprocess.CompletedProcess[str]:
    command = [_program(), *_FLAGS, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


class Tab:
    """A page in a browser that is spoken to by the DevTools protocol, through a pipe: messages end with a zero byte."""

    def __init__(self, profile: Path, url: str) -> None:
        to_browser, self._asks = os.pipe()
        self._answers, from_browser = os.pipe()
        # the browser reads from 3 and writes to 4
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = (*_FLAGS, f"--user-data-dir={profile}", "--window-size=1000,900", "--remote-debugging-pipe")
        self._process = subprocess.Popen(
            ["bash", "-c", shell, _program(), *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: dict[str, str] = {}
        self._number = 0
        self._read = bytearray()
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session["sessionId"] = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._asks)
        self._process.terminate()
        self._process.wait()
        os.close(self._answers)

    def call(self, method: str, **parameters: object) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._read:
            part = os.read(self._answers, 1 << 16)
            assert part, "the browser is gone"
            self._read += part
        message, _, rest = bytes(self._read).partition(b"\0")
        self._read[:] = rest
        return json.loads(message)

    def ask(self, script: str) -> Any:
        """Value of an expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true: what a key does is done a little later."""
        for _ in range(500):
            # a page that has just been asked for has no scripts yet
            with suppress(RuntimeError):
                if self.ask(script):
                    return
            time.sleep(0.02)
        raise AssertionError(f"never so: {script}")

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)
