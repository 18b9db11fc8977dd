"""The receipt of an erasure: what was erased and what the files were before and after, and who says so.

It names no path: of each it has the SHA-256 of a salt, which is in the receipt, and the path. Whoever knows a path can
look whether it was erased.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippy_batch.errors import UsageError
from zippy_batch.stores.atomic_file import replacing
from zippy_batch.stores.object_path import ObjectPath, Place, delete, put_bytes

_SALT_BYTES = 16

Receipt = dict[str, Any]


class ReceiptSigner:
    """Signs receipts by Ed25519 (RFC 8032), with the private key of a PEM file."""

    def __init__(self, key_file: Path) -> None:
        """Raises UsageError where there is no such key, or no library for it."""
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
        except ImportError as error:
            raise UsageError("to sign a receipt: pip install 'zippy-batch[sign]'") from error
        try:
            key = load_pem_private_key(key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else "expected PEM, without a password"
            raise UsageError(f"the key {key_file} cannot be read: {why}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(
                f"{key_file} is no Ed25519 private key; make one by: openssl genpkey -algorithm ed25519 -out {key_file}"
            )
        self._key = key
        self._public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def signed(self, receipt: Receipt) -> Receipt:
        """The receipt with the signature of all else in it."""
        found = self._key.sign(canonical(receipt)).hex()
        return {**receipt, "signature": {"algorithm": "ed25519", "public_key": self._public, "signature": found}}


def canonical(receipt: Receipt) -> bytes:
    """What is signed: JSON of all but the signature, keys in order, without spaces."""
    rest = {name: value for name, value in receipt.items() if name != "signature"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def hashed_paths(paths: Iterable[bytes]) -> Receipt:
    """Salt, and SHA-256 of it and each path, in order."""
    salt = os.urandom(_SALT_BYTES)
    return {"salt": salt.hex(), "paths_sha256": sorted(hashlib.sha256(salt + path).hexdigest() for path in paths)}


def receipt_text(receipt: Mapping[str, Any]) -> str:
    return json.dumps(receipt, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class PendingReceipt:
    """A receipt that waits in the staging of its archive until the erasure is done."""

    staging: Place

    @property
    def path(self) -> Place:
        return self.staging / "receipt.json"

    def is_there(self) -> bool:
        return self.path.exists()

    def write(self, receipt: Receipt, to: Path) -> None:
        text = json.dumps({"to": os.fsdecode(to.absolute()), "receipt": receipt})
        if isinstance(self.path, ObjectPath):
            put_bytes(text.encode(), self.path)
            return
        with replacing(self.path) as new:
            new.write_text(text)

    def settle(self, files: Mapping[str, Any]) -> None:
        """Give the receipt its name where the archive has become what it says; forget it where that has not."""
        try:
            found = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return
        if found["receipt"]["after"] == files:
            to = Path(found["to"])
            # of an archive in a store, a run on another machine may finish the erasure
            to = to if to.parent.is_dir() else Path(to.name)
            for left in to.parent.glob(f"{glob.escape(to.name)}.new-*"):
                left.unlink()
            with replacing(to) as new:
                new.write_text(receipt_text(found["receipt"]))
        if isinstance(self.path, ObjectPath):
            delete(self.path)
        else:
            self.path.unlink()
