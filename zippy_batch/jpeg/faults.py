"""Why a JPEG file cannot be read or rebuilt."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    TOO_LARGE = "too large"
    UNSUPPORTED = "unsupported coding"
    DEEP = "more than 8 bits per sample"
    COMPONENTS = "number of components"
    SEVERAL = "several images"


class Malformed(Exception):
    """A JPEG file or a recipe that is not one, or not one of the kinds that are read; the message says why, in fixed
    words, which reports count."""

    def __init__(self, message: str, fault: Fault = Fault.CORRUPT) -> None:
        super().__init__(message)
        self.fault = fault
