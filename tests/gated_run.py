"""A run on a Ray cluster whose workers stop at a gate, so that a test can end one of them in the middle of a shard.

A program of its own, because it may be what is ended: `python gated_run.py archive|restore SOURCE OUT ADDRESS GATES`.
Each worker leaves a file NODE-PROCESS in the directory GATES when it has come to the gate, and waits there for a file
"open". Prints how many shards were taken over from an earlier run, or how many files were restored.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fakes import find_fake, load_fake

from zippy_batch.codecs.model_file import Model
from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.run.pipeline import Codecs, archive, restore

ARCHIVE = ArchiveOptions(device="cpu", shard_size=4, batch_size=2, exact="never")
RESTORE = RestoreOptions(device="cpu", batch_size=2)
PATIENCE_S = 120.0
CALLS_BEFORE = 5
"""Calls of its codec that a worker makes before it stops: about one shard."""


@dataclass
class Gated:
    inner: Any
    gates: Path

    def __post_init__(self) -> None:
        self.calls = count()

    def encode(self, images: Any, qualities: Any) -> Any:
        self.pass_gate()
        return self.inner.encode(images, qualities)

    def decode_checked(self, items: Any) -> Any:
        self.pass_gate()
        return self.inner.decode_checked(items)

    def pass_gate(self) -> None:
        if next(self.calls) != CALLS_BEFORE:
            return
        import ray

        (self.gates / f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}").touch()
        deadline = time.monotonic() + PATIENCE_S
        while not (self.gates / "open").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


@dataclass(frozen=True)
class MakeGated:
    gates: Path

    def __call__(self, model: Model, device: str) -> Gated:
        from fakes import fake_codec

        return Gated(fake_codec(model, device), self.gates)


def main() -> None:
    command, source, output, address, gates = sys.argv[1:]
    run, codecs = RunOptions(address=address), Codecs(load_fake, find_fake, MakeGated(Path(gates)))
    if command == "archive":
        made = archive(Path(source), Path(output), ARCHIVE, run, codecs=codecs)
        assert made.run is not None
        print(made.run.shards_resumed)
    else:
        print(restore(Path(source), Path(output), RESTORE, run, codecs=codecs).total.images)


if __name__ == "__main__":
    main()
