"""Archives as data sets of Hugging Face's `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zippy_batch.adapters.extras import needed
from zippy_batch.adapters.hf_export import export
from zippy_batch.adapters.pictures import classes_of, pictures_of
from zippy_batch.dataset import Archive
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import UsageError
from zippy_batch.paths import shown_path

__all__ = ["export", "load"]

_MAGIC = ("::", "*", "?", "[")
"""What a path in a URL of fsspec must not have: such files are decoded at once."""
_READ_TOGETHER = 128
_SHARD = 4096
"""Most files of a shard of a stream, which is what its workers share."""
_LEAST_SHARDS = 32


def load(path: str | Path, where: str | None = None, streaming: bool = False) -> Any:
    """A `datasets.Dataset` of an archive's pictures, or a `datasets.IterableDataset` where it is `streaming`.

    Columns are `image`, an Image feature that decodes when it is looked at, `path`, and, where the archive has labels,
    `label`, a ClassLabel. `where` chooses files by their columns. Pictures are the files that restore writes, and
    `push_to_hub` writes out the same. Files that are no pictures are left out, with a warning. A Dataset decodes one
    picture at a time, and has its archive on this machine; a stream decodes 128 together, from anywhere.

    Raises UsageError where there is no archive, or datasets is not installed.
    """
    datasets = needed("datasets", "hf")
    archive = open_archive(path, "cpu")
    numbers = pictures_of(archive, where)
    classes = tuple(classes_of(archive.rows().labels))
    known = {"image": datasets.Image(), "path": datasets.Value("string")}
    if classes:
        known["label"] = datasets.ClassLabel(names=list(classes))
    features = datasets.Features(known)
    if not streaming:
        return _dataset(archive, numbers, features)
    shards = min(len(numbers), max(_LEAST_SHARDS, -(-len(numbers) // _SHARD)))
    parts = [part.tolist() for part in np.array_split(numbers, max(1, shards))]
    return datasets.IterableDataset.from_generator(
        _examples, features=features, gen_kwargs={"archive": archive, "classes": classes, "parts": parts}
    )


def _examples(archive: Archive, classes: tuple[str, ...], parts: list[list[int]]) -> Iterator[dict[str, Any]]:
    for numbers in parts:
        for files in archive[numbers].batches(_READ_TOGETHER):
            for path, label, data in zip(files.paths, files.labels, files.files(), strict=True):
                shown = shown_path(path)
                example: dict[str, Any] = {"image": {"bytes": data, "path": Path(shown).name}, "path": shown}
                if classes:
                    example["label"] = label
                yield example


def _dataset(archive: Archive, numbers: np.ndarray, features: Any) -> Any:
    import datasets
    import pyarrow as pa

    from zippy_batch.adapters.filesystem import register

    register()
    if not isinstance(archive._path, Path):
        raise UsageError(f"{archive._path} is in an object store: load it with streaming=True")
    files = archive[numbers.tolist()]
    paths = files.paths
    at_once = [at for at, path in enumerate(paths) if shown_path(path) != path or any(one in path for one in _MAGIC)]
    data = dict(zip(at_once, archive[numbers[at_once].tolist()].files(), strict=True))
    # not file:///: datasets takes one slash of three away
    urls = [None if at in data else f"zippy://{path}::{archive._path}" for at, path in enumerate(paths)]
    columns = {
        "image": pa.StructArray.from_arrays(
            [pa.array([data.get(at) for at in range(len(paths))], pa.binary()), pa.array(urls, pa.string())],
            ["bytes", "path"],
        ),
        "path": pa.array(map(shown_path, paths), pa.string()),
    }
    if "label" in features:
        classes = {label: number for number, label in enumerate(features["label"].names)}
        labels = [None if label is None else classes[label] for label in files.labels]
        columns["label"] = pa.array(labels, pa.int64())
    table = datasets.table.InMemoryTable(pa.table(columns))
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
