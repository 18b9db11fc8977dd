"""Functions for DuckDB that show the pictures of an archive's rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zippy_batch.adapters.tables import IMAGE, decode_batch, decoder_of, image_type, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["register"]


def register(connection: Any, archive: str | Path | None = None, device: str = "cpu") -> None:
    """Add two functions to a DuckDB connection. Both take a row as a whole, by the name of the table:

        select path, image_jpeg(faces) from 'out.parquet' as faces where psnr < 30

    `image_jpeg(row)` is a BLOB, the file that restore writes: a JPEG of what was coded with loss, and the very file
    that was archived otherwise. `decode_image(row)` is a STRUCT of height, width and rgb, a BLOB of 3 bytes a pixel row
    by row; NULL for what is no picture. Rows are decoded in the batches that DuckDB hands over, after its WHERE.

    `archive` is where models are that are not built in. A damaged row ends the query with an error that names it.
    """

    def jpeg(table: pa.Table) -> list[Any]:
        return decoder_of(archive, device).files(rows_of(table))

    def decoded(table: pa.Table) -> list[Any]:
        return decode_batch(table, archive, device).column(IMAGE).to_pylist()

    _add(connection, "image_jpeg", jpeg, "BLOB")
    _add(connection, "decode_image", decoded, "STRUCT(height INTEGER, width INTEGER, rgb BLOB)")


def _add(connection: Any, name: str, function: Callable[[pa.Table], list[Any]], returns: str) -> None:
    import duckdb
    import pyarrow as pa

    def of_structs(rows: Any) -> Any:
        """Structs, some of them null or of nulls, as an outer join has them -> values of as many."""
        chunks = rows.chunks if isinstance(rows, pa.ChunkedArray) else [rows]
        names = [field.name for field in rows.type]
        table = pa.concat_tables(pa.table(chunk.flatten(), names) for chunk in chunks)
        if "codec" in names:
            known = table["codec"].is_valid()
            there, table = np.flatnonzero(known), table.filter(known)
        else:
            there = np.arange(len(rows))
        found = dict(zip(there.tolist(), function(table), strict=True))
        values = [found.get(at) for at in range(len(rows))]
        return pa.array(values, pa.binary() if returns == "BLOB" else image_type())

    with contextlib.suppress(duckdb.Error):
        connection.remove_function(name)
    connection.create_function(name, of_structs, None, returns, type="arrow", null_handling="special")
