"""The public interface as a strictly typed script has it. mypy reads this file, in `make lint`; nothing runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import zippy_batch as zb


def show(progress: zb.Progress) -> None:
    print(progress.images, progress.seconds_left)


report: zb.ArchiveReport = zb.archive("faces", Path("out.parquet"), quality=80, progress=show)
ratio: float | None = report.total.ratio
zb.restore("out.parquet", "back", zb.RestoreOptions(format="png"), where="psnr < 30")
checked: zb.VerifyReport = zb.verify("out.parquet", against="faces", deep=True)
with zb.open("out.parquet") as archive:
    file: zb.ArchivedFile = archive["a.jpg"]
    pixels: NDArray[np.uint8] = file.pixels
    some: zb.ArchivedFiles = archive[[1, 2]]
    paths: list[str] = archive[1:3].paths
    data: bytes = archive[0].bytes()
    for batch in archive.batches(64, where="codec != 'raw'"):
        stacked = np.stack(batch.pixels)
        labels: list[str | None] = batch.labels
try:
    zb.stats("missing.parquet")
except zb.UsageError as error:
    raise SystemExit(error.exit_code) from error
