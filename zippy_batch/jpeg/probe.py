"""What a JPEG file says of itself, and whether its entropy-coded data is whole.

Decoders repair damage without a word: a file whose middle was overwritten decodes to a picture with a grey or garbled
part. So all scans are decoded here: every code must be valid, every block there, and nothing left over.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from zippy_batch.jpeg.faults import Fault, Malformed
from zippy_batch.jpeg.markers import EOI, MAX_SEGMENTS, SOS, Headers, next_segment
from zippy_batch.jpeg.scans import decode_scan

_LEFT_OVER_BYTES = 4
"""Whole bytes behind the last block that are not taken for damage: some encoders write one or two, or a marker."""

_METADATA_MARKERS = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""APP1 to APP13, APP15 and comments; APP0 and APP14 decide how the components are to be read."""


class JpegProbe:
    """One walk over a file; after `read` has raised Malformed, what was known by then."""

    def __init__(self) -> None:
        self.headers = Headers()
        self.metadata: list[tuple[int, bytes]] = []
        """Marker and contents of all application segments and comments."""
        self.pixel_data = b""
        """The file up to its end-of-image marker, without metadata that could distract a decoder."""
        self._blocks = np.zeros((0, 64), np.int16)

    def read(self, data: bytes) -> int:
        """Walk all segments and scans; returns the position after the end-of-image marker. Raises Malformed."""
        array = np.frombuffer(data, np.uint8)
        at, kept_from = 2, 0
        kept: list[bytes] = []
        for _ in range(MAX_SEGMENTS):
            segment = next_segment(data, at)
            if segment is None:
                raise Malformed("a file without an end", Fault.TRUNCATED)
            marker, start, begin, at = segment
            if marker == EOI:
                self.pixel_data = b"".join([*kept, data[kept_from:at]])
                self.headers.check_complete()
                return at
            if marker in _METADATA_MARKERS:
                kept.append(data[kept_from:start])
                kept_from = at
            body = data[begin:at]
            if marker == SOS:
                at = self._check_scan(data, array, body, at)
            elif marker >= 0xE0:
                self.metadata.append((marker, body))
            else:
                self.headers.read(marker, body)
        raise Malformed(f"more than {MAX_SEGMENTS} segments")

    def _check_scan(self, data: bytes, array: NDArray[np.uint8], body: bytes, at: int) -> int:
        """Decode a scan; returns the position of the marker behind it."""
        headers = self.headers
        scan = headers.read_scan(body)
        if headers.height == 0:
            # no decoder that shows pictures reads these
            raise Malformed("a height that follows after the first scan", Fault.UNSUPPORTED)
        if headers.progressive and not len(self._blocks):
            self._blocks = np.zeros((sum(high * wide for _, (high, wide) in headers.grids()), 64), np.int16)
        try:
            found = decode_scan(array, at, headers, scan, self._blocks)
        except Malformed as error:
            fault = Fault.TRUNCATED if next_segment(data, at) is None else Fault.CORRUPT
            raise Malformed(str(error), fault) from None
        behind = next_segment(data, found.end)
        if behind is None:
            raise Malformed("a file without an end", Fault.TRUNCATED)
        left_over = len(data[found.end : behind[1]].replace(b"\xff\0", b"\xff"))
        if max([left_over, *(len(extra) for _, _, extra in found.odd.endings)]) > _LEFT_OVER_BYTES:
            raise Malformed("a scan goes on after its last block")
        return behind[1]

    def tables(self) -> tuple[tuple[int, ...], ...]:
        """Each component's quantisation table: 64 values in zigzag order, 1..65535."""
        return tuple(self.headers.steps[k] for k in range(len(self.headers.parts)))

    def numbered_tables(self) -> tuple[tuple[int, ...], ...]:
        """The tables by their number in the file, up to the first number without one."""
        tables = self.headers.quantisers
        return tuple(tables[n] for n in itertools.takewhile(tables.__contains__, range(4)))
