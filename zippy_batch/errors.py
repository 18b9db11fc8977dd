"""Everything zippy-batch raises on purpose.

    ZippyError                      exit code 1 unless said otherwise
    ├── UsageError                  2: an option, a path or a preset is wrong; nothing was done
    │   ├── OutputExists            2: refused to overwrite
    │   └── StagingMismatch         2: staging belongs to other inputs or options
    ├── SourceError                 1: a source file cannot be read, or changed during the run
    ├── ArchiveError                1: not an archive, truncated, or of an unknown version
    │   └── DamagedRow              1: one row's bytes are not what was written
    ├── WriteError                  1: no room, or no right, to write a file
    ├── ModelError                  1: a model file is damaged, unknown, inexact or not the archive's
    ├── StorageError                1: an object store cannot be reached, refuses, or does not keep what it was given
    └── WorkerError                 1: a worker died or a shard failed for good

Messages say what failed, where (path, shard, row), what was expected, what was found and what to do next. Instances
pickle, because they cross process boundaries on Ray.
"""

from __future__ import annotations


class ZippyError(Exception):
    exit_code = 1


class UsageError(ZippyError):
    exit_code = 2


class OutputExists(UsageError):
    pass


class StagingMismatch(UsageError):
    pass


class SourceError(ZippyError):
    pass


class ArchiveError(ZippyError):
    pass


class DamagedRow(ArchiveError):
    pass


class WriteError(ZippyError):
    pass


class ModelError(ZippyError):
    pass


class StorageError(ZippyError):
    pass


class WorkerError(ZippyError):
    pass
