"""Archives as Datasets of Ray Data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zippy_batch.adapters.extras import needed
from zippy_batch.adapters.tables import IMAGE, decoder_of, pictures_or_none, rows_of
from zippy_batch.dataset import open as open_archive

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["decode_arrays", "read"]

_KEPT = ("path", "label", "codec")


def read(path: str | Path, batch_size: int = 128, **options: Any) -> Any:
    """A `ray.data.Dataset` of an archive's pictures: what `decode_arrays` gives of each batch.

    Ray reads the Parquet files and hands their rows over in batches of `batch_size`; `options` are those of
    `ray.data.read_parquet` but `columns`. Raises UsageError where there is no archive or Ray Data is not installed; a
    damaged row ends the job with DamagedRow.
    """
    data = needed("ray.data", "ray-data")
    name = str(open_archive(path)._path)
    decode = functools.partial(decode_arrays, archive=name)
    return data.read_parquet(name, **options).map_batches(decode, batch_format="pyarrow", batch_size=batch_size)


def decode_arrays(table: pa.Table, archive: str | Path | None = None) -> dict[str, np.ndarray]:
    """Decode rows of an archive for `map_batches(..., batch_format="pyarrow")`, into arrays by column.

    `image` is uint8 (N, H, W, 3), or N arrays (H, W, 3) where sizes differ; `path`, `label` and `codec` are text,
    `psnr` and `ssim` float32, NaN where there is none. Files that are no pictures are left out. `archive` is where
    models are that are not built in. Raises what `zippy_batch.decode_batch` raises.
    """
    pictures = pictures_or_none(rows_of(table), decoder_of(archive, "cpu"))
    shown = [at for at, picture in enumerate(pictures) if picture is not None]
    found = {name: np.array([table[name][at].as_py() for at in shown], object) for name in _KEPT}
    for name in ("psnr", "ssim"):
        values = [table[name][at].as_py() for at in shown]
        found[name] = np.array([np.nan if value is None else value for value in values], np.float32)
    shapes = {pictures[at].shape for at in shown}
    images = np.empty(len(shown), object)
    for place, at in enumerate(shown):
        images[place] = pictures[at]
    found[IMAGE] = np.stack(list(images)) if len(shapes) == 1 else images
    return found
