"""Errors that are raised on purpose are built-ins as well, and survive the way from a worker to the driver."""

from __future__ import annotations

import pickle

import pytest

from zippy_batch import errors
from zippy_batch.errors import ZippyError

BUILT_IN = {
    "UsageError": ValueError,
    "OptionError": ValueError,
    "OutputExists": FileExistsError,
    "StagingMismatch": ValueError,
    "SourceError": OSError,
    "ArchiveError": ValueError,
    "DamagedRow": ValueError,
    "WriteError": OSError,
    "ModelError": ValueError,
    "StorageError": OSError,
    "WorkerError": RuntimeError,
}
CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ZippyError)]


def test_each_error_is_the_built_in_that_fits() -> None:
    assert {found.__name__ for found in CLASSES} == {*BUILT_IN, "ZippyError"}
    assert all(issubclass(getattr(errors, name), built_in) for name, built_in in BUILT_IN.items())


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_pickle_with_their_message(kind: type[ZippyError]) -> None:
    error = kind("shard 3: what was expected")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_code) == (kind, str(error), error.exit_code)
