"""One run at a time on an output in an object store, which has no locks.

    STAGING/leases/XXXX.json    a run that works here: machine, process, since when

A run first writes a lease of its own, then lists all leases, and works only once it has seen a listing in which no
other lease is alive. Of two that see each other the later one withdraws, and the earlier one waits for that. Where
listings show every write that ended before (S3, Google Cloud Storage), two runs never both go on.

A run rewrites its lease every RENEW_S. One that has not done so for LEASE_S by the store's own clock is dead, and so is
one of a process of this machine that is not there any more. The run that finds a dead lease deletes it; should its
owner only have been asleep, it finds its lease gone and stops, before its next shard or before it publishes. What it
may have written by then does no harm: parts have the bytes that their names stand for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from zippy_batch.errors import UsageError, WorkerError, ZippyError
from zippy_batch.stores.object_path import ObjectPath, delete, listed, put_bytes

RENEW_S = 60.0
LEASE_S = 300.0
WITHDRAWAL_S = 3.0
"""How long an earlier run waits for a later one to withdraw."""
_PAUSE_S = 0.3
_HELD: set[str] = set()
"""Names of the leases that this process holds. One that it could not delete, because its store failed, is not among
them, and is dead although its process is not."""


@dataclass(frozen=True)
class Owner:
    host: str
    machine: str
    """What process ids are unique in: this start of this machine, and its namespace."""
    pid: int
    since: str

    @classmethod
    def this(cls) -> Owner:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), _machine(), os.getpid(), now)

    def is_dead(self) -> bool:
        """Whether it was a process of this machine and is no more."""
        if self.machine != _machine() or not self.machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def is_this_process(self) -> bool:
        return bool(self.machine) and (self.machine, self.pid) == (_machine(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class _Seen:
    path: ObjectPath
    written_s: float
    """Time on the store's clock."""


class Lease:
    """The lease of this run; made by `leased`."""

    def __init__(self, root: ObjectPath) -> None:
        self._directory = root / "leases"
        self._path = self._directory / f"{uuid.uuid4().hex}.json"
        self._text = json.dumps(asdict(Owner.this())).encode()
        self._stopped, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="zippy-lease", daemon=True)

    def require(self) -> None:
        """Raises WorkerError when another run took this one for dead."""
        if not self._path.exists():
            self._lost = True
        if self._lost:
            raise WorkerError(
                f"{self._path} is gone: another run took this one for dead and goes on in its place; nothing is lost"
            )

    def stop(self) -> None:
        """Stop renewing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        while not self._stopped.wait(RENEW_S) and not self._lost:
            # a store that does not answer is for the next request of the run itself to report
            with contextlib.suppress(ZippyError, OSError):
                if self._path.exists():
                    put_bytes(self._text, self._path)
                else:
                    self._lost = True

    def _win(self) -> None:
        """Raises UsageError, naming the other run."""
        until = time.monotonic() + WITHDRAWAL_S
        while True:
            seen = {lease.path: lease for lease in self._all()}
            mine = seen.pop(self._path, None)
            if mine is None:
                raise WorkerError(f"{self._path} does not show after it was written; run the same command again")
            others = [other for other in seen.values() if not self._is_buried(other, mine)]
            if not others:
                return
            first = min(others, key=_order)
            if _order(first) < _order(mine) or time.monotonic() > until:
                raise UsageError(self._refusal(first, mine))
            time.sleep(_PAUSE_S)

    def _all(self) -> list[_Seen]:
        found = (info for info in listed(self._directory) if info.is_file)
        return [_Seen(self._directory / info.base_name, (info.mtime_ns or 0) / 1e9) for info in found]

    def _is_buried(self, other: _Seen, mine: _Seen) -> bool:
        """Whether the run is dead; then its lease is deleted."""
        owner = _owner(other.path)
        is_dropped = owner is not None and owner.is_this_process() and other.path.name not in _HELD
        if is_dropped or mine.written_s - other.written_s > LEASE_S or (owner is not None and owner.is_dead()):
            delete(other.path)
            return True
        return False

    def _refusal(self, other: _Seen, mine: _Seen) -> str:
        heard_s = max(0.0, mine.written_s - other.written_s)
        return (
            f"another run is writing here ({_owner(other.path) or 'its lease cannot be read'}; last heard of "
            f"{heard_s:.0f} s ago): wait for it, or stop it. If it is dead, it counts as dead {LEASE_S:.0f} s after it "
            f"was last heard of, or once you delete {other.path}"
        )


@contextmanager
def leased(root: ObjectPath) -> Iterator[Lease]:
    """Raises UsageError when another run works in this staging, naming it."""
    lease = Lease(root)
    _HELD.add(lease._path.name)
    try:
        put_bytes(lease._text, lease._path)
        lease._win()
        lease._thread.start()
        yield lease
    finally:
        lease.stop()
        _HELD.discard(lease._path.name)
        # a lease that stays, because the store cannot be reached any more, is found to be dead by the next run
        with contextlib.suppress(ZippyError, OSError):
            if lease._path.exists():
                delete(lease._path)


def _order(lease: _Seen) -> tuple[float, str]:
    return lease.written_s, lease.path.name


def _owner(path: ObjectPath) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _machine() -> str:
    """Empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
