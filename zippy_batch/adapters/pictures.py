"""Which rows of an archive are pictures, and what classes they are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zippy_batch.dataset import Archive
from zippy_batch.run.row_decoder import NO_PICTURE

_log = logging.getLogger(__name__)


def pictures_of(archive: Archive, where: str | None) -> NDArray[np.int64]:
    """Numbers of the files that a condition holds for, ascending, but for those that are no pictures."""
    numbers = np.asarray(archive.rows(where).numbers, np.int64)
    reasons = archive.rows().column("raw_reason")
    shown = np.fromiter((reasons[number] not in NO_PICTURE for number in numbers), bool, len(numbers))
    if not shown.all():
        first = archive.rows().paths[int(numbers[~shown][0])]
        _log.warning(
            "%d of %d files are no pictures and are left out, the first is %s", (~shown).sum(), len(shown), first
        )
    return numbers[shown]


def classes_of(labels: Sequence[str | None]) -> Mapping[str, int]:
    """Number of each class: labels in the order of their text."""
    return {label: number for number, label in enumerate(sorted({label for label in labels if label is not None}))}
