"""Archives as Parquet files of plain JPEG bytes, as Hugging Face's Hub and its viewer have them; without `datasets`."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zippy_batch.adapters.pictures import classes_of, pictures_of
from zippy_batch.dataset import Archive
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import ArchiveError, OutputExists, UsageError
from zippy_batch.paths import shown_path
from zippy_batch.stores.atomic_file import flush, writing
from zippy_batch.stores.object_path import local_path

_LEAST_PARTS = 20
"""So that loaders of 20 workers have a file each."""
MOST_PARTS = 10_000
"""Files that a directory of the Hub may have."""
_PART_BYTES = 256 << 20
_GROUP = 1000
"""Rows of a row group."""
_READ_TOGETHER = 128


def export(archive: str | Path | Archive, directory: str | Path, where: str | None = None, parts: int = 0) -> int:
    """Write the pictures of an archive as a data set of the Hub, and return how many there are.

    `directory` is made, with files train-00000-of-00020.parquet and on, whose columns are `image` (bytes and path),
    `path`, and `label` where there are labels, a ClassLabel; `datasets.load_dataset(directory)` and the Hub's viewer
    know them. Pictures are the files that restore writes. `where` chooses files by their columns; `parts` is how many
    files there are, 20 or more by default, of some 256 MB of sources. Files that are no pictures are left out, with a
    warning.

    Raises UsageError where there is no archive or the number of parts is none, OutputExists where `directory` is there,
    DamagedRow at the first damaged row, and WriteError where there is no room. Nothing is left then.
    """
    out = local_path(directory, "export")
    if out.exists():
        raise OutputExists(f"{out} is there already; remove it, or give another name")
    if not 0 <= parts <= MOST_PARTS:
        raise UsageError(f"a data set has 1 to {MOST_PARTS} parts, not {parts}")
    opened = archive if isinstance(archive, Archive) else open_archive(archive, "cpu")
    numbers = pictures_of(opened, where)
    if not len(numbers):
        raise ArchiveError(f"there is no picture to export in {opened._path}")
    if not parts:
        sizes = np.asarray(opened.rows().column("source_bytes"), np.int64)[numbers]
        parts = min(MOST_PARTS, max(_LEAST_PARTS, -(-int(sizes.sum()) // _PART_BYTES)))
    parts = min(parts, len(numbers))
    classes = list(classes_of(opened.rows().labels))
    new = out.with_name(f"{out.name}.new-{uuid.uuid4().hex}")
    try:
        with writing(str(out)):
            new.mkdir(parents=True)
            for part, some in enumerate(np.array_split(numbers, parts)):
                _write(new / f"train-{part:05d}-of-{parts:05d}.parquet", opened, some.tolist(), classes)
            flush(new)
            new.rename(out)
            flush(out.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return len(numbers)


def _write(path: Path, archive: Archive, numbers: Sequence[int], classes: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(classes)
    known = {label: number for number, label in enumerate(classes)}
    with pq.ParquetWriter(path, schema) as writer:
        for at in range(0, len(numbers), _GROUP):
            rows: list[dict[str, Any]] = []
            for files in archive[numbers[at : at + _GROUP]].batches(_READ_TOGETHER):
                for name, label, data in zip(map(shown_path, files.paths), files.labels, files.files(), strict=True):
                    row = {"image": {"bytes": data, "path": name.rpartition("/")[2]}, "path": name}
                    rows.append(row | ({"label": None if label is None else known[label]} if classes else {}))
            writer.write_table(pa.Table.from_pylist(rows, schema))
    flush(path)


def _schema(classes: Sequence[str]) -> Any:
    """Schema of the table, with what `datasets` reads its features from."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields: list[tuple[str, Any]] = [("image", image), ("path", pa.string())]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "path": {"dtype": "string", "_type": "Value"}}
    if classes:
        fields.append(("label", pa.int64()))
        features["label"] = {"names": [*classes], "_type": "ClassLabel"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
