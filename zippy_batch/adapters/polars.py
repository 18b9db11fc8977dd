"""Archives as lazy frames of Polars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zippy_batch.adapters.extras import needed
from zippy_batch.adapters.tables import IMAGE, image_structs, image_type
from zippy_batch.archives.schema import BY_NAME
from zippy_batch.dataset import Archive
from zippy_batch.dataset import open as open_archive

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["scan"]

_FILE = "file"
_AT = "\0row"
"""Column of the position in the row group; no column of an archive is called so."""


def scan(archive: str | Path | Archive, device: str = "cpu") -> Any:
    """A `polars.LazyFrame` of an archive: its columns, and two that are made when a query asks for them.

    `image` is a struct of height, width and rgb, a binary of 3 bytes a pixel row by row, null for what is no picture;
    `file` is the file that restore writes. Only the columns that a query names are read, row group by row group; a
    filter's columns come first, and the others are read and decoded for what it leaves.

    Raises UsageError where there is no archive or Polars is not installed; a query raises ArchiveError and DamagedRow.
    Polars calls the interface that this uses unstable.
    """
    polars = needed("polars", "polars")
    plugins = needed("polars.io.plugins", "polars")
    opened = archive if isinstance(archive, Archive) else open_archive(archive, device)
    schema = polars.from_arrow(_schema(opened).empty_table()).schema

    def source(columns: list[str] | None, predicate: Any, rows: int | None, batch: int | None) -> Iterator[Any]:
        wanted = list(schema) if columns is None else columns
        left = len(opened) if rows is None else rows
        for numbers, read in opened._group_tables():
            if left <= 0:
                break
            frame = polars.DataFrame({_AT: range(len(numbers))}, schema={_AT: polars.Int64})
            if predicate is not None:
                frame = _with(frame, predicate.meta.root_names(), _Group(opened, numbers, read)).filter(predicate)
            frame = _with(frame.head(left), wanted, _Group(opened, numbers, read))
            left -= len(frame)
            yield frame.select(wanted)

    return plugins.register_io_source(source, schema=schema, is_pure=True)


class _Group:
    """A row group, and what can be had of it."""

    def __init__(self, archive: Archive, numbers: range, read: Callable[[Sequence[str]], pa.Table]) -> None:
        self._archive, self._numbers, self._read = archive, numbers, read

    def columns(self, names: list[str], at: list[int]) -> pa.Table:
        """Columns of some of its rows."""
        import pyarrow as pa

        stored = self._read([name for name in names if name in BY_NAME])
        found = {name: stored.column(name).take(pa.array(at, pa.int64())) for name in stored.column_names}
        if {IMAGE, _FILE} & {*names}:
            files = self._archive[[self._numbers[one] for one in at]].read()
            if IMAGE in names:
                found[IMAGE] = pa.array(image_structs(files._rows(), self._archive._decoder), image_type())
            if _FILE in names:
                found[_FILE] = pa.array(files.files(), pa.binary())
        return pa.table(found)


def _with(frame: Any, names: list[str], group: _Group) -> Any:
    """Rows of a row group with more of its columns."""
    import polars

    left = [name for name in names if name not in frame.columns]
    return frame.hstack(polars.from_arrow(group.columns(left, frame[_AT].to_list()))) if left else frame


def _schema(archive: Archive) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([*archive.schema, pa.field(IMAGE, image_type()), pa.field(_FILE, pa.binary())])
