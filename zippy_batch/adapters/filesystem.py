"""Archives as read-only file systems of fsspec: `zippy://member.jpg::file:///data/out.parquet`.

Found by its entry point; whatever opens URLs with fsspec opens members: pandas, Ray, datasets, `fsspec.open`.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from zippy_batch.dataset import Archive
from zippy_batch.dataset import open as open_archive
from zippy_batch.errors import UsageError

__all__ = ["ZippyFileSystem", "register"]

_READ, _ENTER = 0o444, 0o111
"""Permissions, as a mount shows them."""
_RECENT = 64
"""Files that are kept, because who asks for a size reads the file next."""


class ZippyFileSystem(AbstractFileSystem):
    """The files of an archive as restore writes them, under their own paths.

    A file of a row that was coded with loss is a JPEG, whatever its name ends in, and is made when it is opened or its
    size is asked for: listings have its size as None. Several files are decoded together by `cat`.

    Raises UsageError where there is no archive, FileNotFoundError for a path that is not in it, OSError for writing,
    and ArchiveError and DamagedRow as `zippy_batch.open` and its files do.
    """

    protocol = "zippy"
    root_marker = ""
    cachable = True

    def __init__(
        self,
        fo: str = "",
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        """fo, target_protocol, target_options: where the archive is, as fsspec cuts a chained URL. device: where it is
        decoded."""
        super().__init__(**options)
        if not fo:
            raise UsageError("of which archive? write zippy://member.jpg::file:///data/out.parquet")
        if target_options:
            raise UsageError(
                "an archive's store takes no options here; set them in the environment, see object-stores.md"
            )
        local = target_protocol in (None, "file", "local")
        self.fo = fo if local or "://" in fo else f"{target_protocol}://{fo}"
        self._archive = open_archive(self.fo, device)
        self._recent: dict[str, bytes] = {}
        self._tree: dict[str, list[dict[str, Any]]] | None = None

    @property
    def archive(self) -> Archive:
        return self._archive

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path).lstrip("/") if isinstance(path, str) else super()._strip_protocol(path)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Describe one file, with its size, or a directory."""
        path = self._strip_protocol(path)
        if path in self._archive:
            size, mtime_s = len(self._content(path)), self._archive[path].row.mtime_s
            return {"name": path, "type": "file", "size": size, "mtime": mtime_s, "mode": _READ}
        if path in self._directories():
            return {"name": path, "type": "directory", "size": 0, "mode": _READ | _ENTER}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found = self._directories().get(path)
        if found is None:
            found = [self.info(path)]
        return [*found] if detail else [one["name"] for one in found]

    def _directories(self) -> dict[str, list[dict[str, Any]]]:
        """Directory -> what is in it, in order of their names; read once."""
        if self._tree is None:
            rows = self._archive.rows()
            columns = (rows.column(name) for name in ("codec", "source_bytes", "mtime_s"))
            tree: dict[str, list[dict[str, Any]]] = {"": []}
            for path, codec, size, mtime in zip(rows.paths, *columns, strict=True):
                known = None if codec == "latent" else size
                file = {"name": path, "type": "file", "size": known, "mtime": mtime, "codec": codec}
                _put(tree, path.rpartition("/")[0], file)
            self._tree = {name: sorted(found, key=lambda one: one["name"]) for name, found in tree.items()}
        return self._tree

    def _content(self, path: str) -> bytes:
        if path not in self._recent:
            try:
                self._recent[path] = self._archive[path].bytes()
            except KeyError:
                raise FileNotFoundError(path) from None
            for old in list(self._recent)[:-_RECENT]:
                self._recent.pop(old, None)
        return self._recent[path]

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> io.BytesIO:
        if mode != "rb":
            self._refuse(path)
        return io.BytesIO(self._content(self._strip_protocol(path)))

    def _refuse(self, path: Any, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, f"{self.fo} is an archive, and read-only", path)

    # what is not refused here does nothing in fsspec, or fails in a way of its own
    touch = mkdir = makedirs = rmdir = rm = rm_file = cp_file = mv = pipe_file = put_file = _refuse

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        return self._content(self._strip_protocol(path))[start:end]

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """The bytes of a file, or those of several by path, decoded together."""
        paths = self.expand_path(path, recursive=recursive)
        files = [one for one in paths if one in self._archive]
        if on_error != "raise" or len(files) < 2:
            return super().cat(path, recursive=recursive, on_error=on_error, **options)
        numbers = [self._archive[one].number for one in files]
        return dict(zip(files, self._archive[numbers].files(), strict=True))


def register() -> None:
    """Make `zippy://` known to fsspec in this process; where the package is installed, its entry point does that."""
    fsspec.register_implementation("zippy", ZippyFileSystem, clobber=True)


def _put(tree: dict[str, list[dict[str, Any]]], directory: str, entry: dict[str, Any]) -> None:
    """Into a directory, which is put into the one above it where it is new."""
    if directory not in tree:
        tree[directory] = []
        _put(tree, directory.rpartition("/")[0], {"name": directory, "type": "directory", "size": 0})
    tree[directory].append(entry)
