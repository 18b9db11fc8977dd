"""Libraries that not everybody has."""

from __future__ import annotations

import importlib
from types import ModuleType

from zippy_batch.errors import UsageError


def needed(module: str, extra: str) -> ModuleType:
    """The library. Raises UsageError, with what installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs {module}, which pip install 'zippy-batch[{extra}]' brings ({error})") from error
