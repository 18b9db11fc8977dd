"""Everything zippy-batch raises on purpose, and the built-in that each is as well.

    ZippyError          Exception         exit code 1 unless said otherwise
    ├── UsageError      ValueError        2: an option, a path or a preset is wrong; nothing was done
    │   ├── OptionError                   2: an option has a value that it cannot have, here or beside another
    │   ├── OutputExists FileExistsError  2: refused to overwrite
    │   └── StagingMismatch               2: staging belongs to other inputs or options
    ├── SourceError     OSError           1: a source file cannot be read, or changed during the run
    ├── ArchiveError    ValueError        1: not an archive, truncated, or of an unknown version
    │   └── DamagedRow                    1: one row's bytes are not what was written
    ├── WriteError      OSError           1: no room, or no right, to write a file
    ├── ModelError      ValueError        1: a model file is damaged, unknown, inexact or not the archive's
    ├── StorageError    OSError           1: an object store cannot be reached, refuses, or does not keep what it got
    └── WorkerError     RuntimeError      1: a worker died or a shard failed for good

A handler of OSError or ValueError that stands around calls into this package lets a ZippyError pass first: it has its
message already.

Messages say what failed, where (path, shard, row), what was expected, what was found and what to do next. Instances
pickle, because they cross process boundaries on Ray.
"""

from __future__ import annotations

from collections.abc import Mapping


class ZippyError(Exception):
    exit_code = 1


class UsageError(ZippyError, ValueError):
    exit_code = 2


class OptionError(UsageError):
    """Names options as Python and presets do; `as_flags` names them as the command line does."""

    def __init__(self, message: str, *options: str) -> None:
        """Each of `options` stands in the message in braces."""
        super().__init__(message, *options)
        self._message, self._options = message, options

    def __str__(self) -> str:
        return self._named({})

    def as_flags(self, flags: Mapping[str, str]) -> str:
        """The message with the flags of options by their names; --some-option where there is none for some_option."""
        return self._named({option: f"--{option.replace('_', '-')}" for option in self._options} | dict(flags))

    def _named(self, names: Mapping[str, str]) -> str:
        text = self._message
        for option in self._options:
            text = text.replace(f"{{{option}}}", names.get(option, option))
        return text


class OutputExists(UsageError, FileExistsError):
    pass


class StagingMismatch(UsageError):
    pass


class SourceError(ZippyError, OSError):
    pass


class ArchiveError(ZippyError, ValueError):
    pass


class DamagedRow(ArchiveError):
    pass


class WriteError(ZippyError, OSError):
    pass


class ModelError(ZippyError, ValueError):
    pass


class StorageError(ZippyError, OSError):
    pass


class WorkerError(ZippyError, RuntimeError):
    pass
