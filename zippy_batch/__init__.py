"""Archive directories of face images into Parquet with a learned codec, and restore them with known quality.

    import zippy_batch as zb

    zb.archive("faces", "faces.parquet", quality=80)
    with zb.open("faces.parquet") as archive:
        archive["id_1/x.jpg"].pixels

All that is public is named in `__all__` and described in docs/api.md. A name is loaded when it is first used: importing
the package takes no time, and neither torch, Ray, pyarrow nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zippy_batch.adapters import duckdb as duckdb
    from zippy_batch.adapters import filesystem as filesystem
    from zippy_batch.adapters import hf as hf
    from zippy_batch.adapters import polars as polars
    from zippy_batch.adapters import ray as ray
    from zippy_batch.adapters import torch as torch
    from zippy_batch.adapters.tables import decode_batch
    from zippy_batch.api import (
        append,
        archive,
        dedupe,
        diff,
        erase,
        estimate,
        merge,
        models,
        restore,
        select,
        split,
        stats,
        train,
        verify,
    )
    from zippy_batch.archives.info import ArchiveInfo
    from zippy_batch.codecs.model_file import ModelSummary
    from zippy_batch.config import (
        AppendOptions,
        ArchiveOptions,
        RestoreOptions,
        RunOptions,
        TrainOptions,
        VerifyOptions,
    )
    from zippy_batch.dataset import Archive, ArchivedFile, ArchivedFiles, open
    from zippy_batch.errors import (
        ArchiveError,
        DamagedRow,
        ModelError,
        OptionError,
        OutputExists,
        SourceError,
        StagingMismatch,
        StorageError,
        UsageError,
        WorkerError,
        WriteError,
        ZippyError,
    )
    from zippy_batch.run.append import AppendReport
    from zippy_batch.run.copy_rows import CopyReport
    from zippy_batch.run.diff import DedupeReport, DiffReport
    from zippy_batch.run.erase import EraseReport
    from zippy_batch.run.estimate import Estimate
    from zippy_batch.run.report import ArchiveReport, Progress, RestoreReport, VerifyReport
    from zippy_batch.training.session import TrainReport
    from zippy_batch.views.sheet import sheet

__version__ = "0.1.0"

__all__ = [
    "AppendOptions",
    "AppendReport",
    "Archive",
    "ArchiveError",
    "ArchiveInfo",
    "ArchiveOptions",
    "ArchiveReport",
    "ArchivedFile",
    "ArchivedFiles",
    "CopyReport",
    "DamagedRow",
    "DedupeReport",
    "DiffReport",
    "EraseReport",
    "Estimate",
    "ModelError",
    "ModelSummary",
    "OptionError",
    "OutputExists",
    "Progress",
    "RestoreOptions",
    "RestoreReport",
    "RunOptions",
    "SourceError",
    "StagingMismatch",
    "StorageError",
    "TrainOptions",
    "TrainReport",
    "UsageError",
    "VerifyOptions",
    "VerifyReport",
    "WorkerError",
    "WriteError",
    "ZippyError",
    "append",
    "archive",
    "decode_batch",
    "dedupe",
    "diff",
    "erase",
    "estimate",
    "merge",
    "models",
    "open",
    "restore",
    "select",
    "sheet",
    "split",
    "stats",
    "train",
    "verify",
]

_MODULES = {
    "zippy_batch.adapters.tables": ("decode_batch",),
    "zippy_batch.api": (
        "append",
        "archive",
        "dedupe",
        "diff",
        "erase",
        "estimate",
        "merge",
        "models",
        "restore",
        "select",
        "split",
        "stats",
        "train",
        "verify",
    ),
    "zippy_batch.archives.info": ("ArchiveInfo",),
    "zippy_batch.codecs.model_file": ("ModelSummary",),
    "zippy_batch.config": (
        "AppendOptions",
        "ArchiveOptions",
        "RestoreOptions",
        "RunOptions",
        "TrainOptions",
        "VerifyOptions",
    ),
    "zippy_batch.dataset": ("Archive", "ArchivedFile", "ArchivedFiles", "open"),
    "zippy_batch.run.append": ("AppendReport",),
    "zippy_batch.run.copy_rows": ("CopyReport",),
    "zippy_batch.run.diff": ("DedupeReport", "DiffReport"),
    "zippy_batch.run.erase": ("EraseReport",),
    "zippy_batch.run.estimate": ("Estimate",),
    "zippy_batch.run.report": ("ArchiveReport", "Progress", "RestoreReport", "VerifyReport"),
    "zippy_batch.training.session": ("TrainReport",),
    "zippy_batch.views.sheet": ("sheet",),
}
"""Where names are; the others are in zippy_batch.errors."""

_ADAPTERS = ("duckdb", "filesystem", "hf", "polars", "ray", "torch")
"""Modules for other libraries. Not in `__all__`: nobody who imports all wants this torch in place of the real one."""


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return importlib.import_module(f"zippy_batch.adapters.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "zippy_batch.errors")
    found = getattr(importlib.import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ADAPTERS})
