"""Writes the golden archives of the current format version and what must be read from them.

    python tests/golden/make.py

Run it once for each format version, before its release; never again for an old one. The model is a tiny one that is
embedded, so that the archives can be read for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tiny import pictures, tiny_model  # noqa: E402

from zippy_batch.archive import Archive  # noqa: E402
from zippy_batch.config import ArchiveOptions, RunOptions  # noqa: E402
from zippy_batch.drawn import draw_faces  # noqa: E402
from zippy_batch.latent.codec import LatentCodec, LatentItem  # noqa: E402
from zippy_batch.pipeline import archive  # noqa: E402
from zippy_batch.schema import FORMAT_VERSION, Row  # noqa: E402
from zippy_batch.weights import model_from_bytes  # noqa: E402


def sources(folder: Path) -> None:
    """A few files of every kind an archive tells apart."""
    draw_faces(folder / "faces", 4)
    face = Image.open(folder / "faces" / "face_00000.jpg")
    face.convert("L").save(folder / "grey.jpg", quality=80)
    Image.fromarray(np.repeat(pictures(1, 33, 57)[0][..., :1], 3, 2)).save(folder / "equal-channels.png")
    Image.fromarray(pictures(1, 70, 31)[0]).save(folder / "tall.png")
    exif = Image.Exif()
    exif[274] = 6
    face.save(folder / "turned.jpg", quality=90, exif=exif)
    (folder / "empty").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"not an image\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes((folder / "grey.jpg").read_bytes())
    for path in folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


def content(path: Path) -> list[dict[str, object]]:
    """What the rows of an archive hold, symbols included."""
    found = []
    with Archive.open(path) as opened:
        codec = LatentCodec(model_from_bytes(opened.info.model or b""))
        for shard in opened.shards():
            for row in opened.read_rows(shard):
                assert isinstance(row, Row), row
                found.append(row_content(row, codec))
    return found


def row_content(row: Row, codec: LatentCodec) -> dict[str, object]:
    digest = hashlib.sha256(row.payload).hexdigest()
    if row.codec == "latent":
        item = LatentItem(row.payload, row.height or 0, row.width or 0, row.grey, row.quality or 0)
        y_hat, damage = codec.decode_symbols([item])
        assert not damage, damage
        digest = hashlib.sha256(y_hat.numpy().astype("<i4").tobytes()).hexdigest()
    return {
        "path": row.path.hex(),
        "codec": row.codec,
        "raw_reason": row.raw_reason,
        "size": [row.width, row.height],
        "mode": row.mode,
        "grey": row.grey,
        "quality": row.quality,
        "source": [row.source_bytes, row.source_format, row.jpeg_quality, row.mtime_s],
        "quality_db": [row.psnr, row.ssim],
        "attachments": [
            None if b is None else hashlib.sha256(b).hexdigest() for b in (row.jpeg_tables, row.exif, row.icc)
        ],
        "sha256": digest,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "source", Path(temporary) / "tiny.safetensors"
        folder.mkdir()
        sources(folder)
        model.write_bytes(tiny_model().data)
        options = ArchiveOptions(quality=40, model=str(model), device="cpu", shard_size=6)
        for name in (f"v{FORMAT_VERSION}.parquet", f"v{FORMAT_VERSION}"):
            archive(folder, HERE / name, options, RunOptions(workers=1))
        rows = content(HERE / f"v{FORMAT_VERSION}.parquet")
        (HERE / f"v{FORMAT_VERSION}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(len(rows), "rows,", sum(row["codec"] == "latent" for row in rows), "latent")


if __name__ == "__main__":
    main()
