"""Writes the golden archives of the format, in place of those that are there, and what must be read from them.

    python tests/golden/make.py

Run it whenever what a version writes changes before its release, and never after it. The models are tiny ones that are
embedded, so that the archives can be read for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "benchmarks")]

from synthetic_faces import draw_faces  # noqa: E402
from tiny import pictures, tiny_exact_model, tiny_model  # noqa: E402

from zippy_batch.archives.reader import ArchiveReader  # noqa: E402
from zippy_batch.archives.schema import FORMAT_VERSION, Row  # noqa: E402
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem  # noqa: E402
from zippy_batch.codecs.model_file import model_from_bytes  # noqa: E402
from zippy_batch.config import ArchiveOptions, RunOptions  # noqa: E402
from zippy_batch.run.encode_verified import Coders, make_codec  # noqa: E402
from zippy_batch.run.pipeline import archive  # noqa: E402
from zippy_batch.run.rows import stored_files  # noqa: E402


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
    # data behind the end keep a file from the lossy codec
    options: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 2}]
    for i, more in enumerate(options):
        face.resize((50, 43)).save(folder / f"tail-{i}.jpg", quality=60 + 10 * i, **more)
    for path in [folder / "grey.jpg", *folder.glob("tail-*.jpg")]:
        path.with_name(f"exact-{path.name}").write_bytes(path.read_bytes() + b"behind the end")
    (folder / "empty").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"not an image\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes((folder / "grey.jpg").read_bytes())
    for path in folder.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


def content(path: Path) -> list[dict[str, object]]:
    """What the rows of an archive hold, symbols and pixels included."""
    found = []
    with ArchiveReader.open(path) as opened:
        models = {codec: model_from_bytes(data) for codec, data in opened.info.model_files.items()}
        coders = Coders.of(models, "cpu", make_codec)
        for shard in opened.shards():
            for row in opened.read_rows(shard):
                assert isinstance(row, Row), row
                found.append(row_content(row, coders))
    return found


def row_content(row: Row, coders: Coders) -> dict[str, object]:
    digest = hashlib.sha256(row.payload).hexdigest()
    if row.codec == "latent":
        item = LatentItem(row.payload, row.height or 0, row.width or 0, row.grey, row.quality or 0)
        assert isinstance(coders.latent, LatentCodec)
        y_hat, damage = coders.latent.decode_symbols([item])
        assert not damage, damage
        (pixels,) = coders.latent.decode([item])
        digest = hashlib.sha256(y_hat.astype("<i4").tobytes() + pixels.tobytes()).hexdigest()
    elif row.codec == "exact":
        (file,) = stored_files([(0, row)], coders)
        assert isinstance(file, bytes), file
        digest = hashlib.sha256(file).hexdigest()
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
        folder = Path(temporary) / "source"
        folder.mkdir()
        sources(folder)
        models = {"model": tiny_model(), "exact_model": tiny_exact_model()}
        for name, model in models.items():
            (Path(temporary) / name).write_bytes(model.data)
        paths = {name: str(Path(temporary) / name) for name in models}
        options = ArchiveOptions(quality=40, device="cpu", shard_size=6, **paths)  # type: ignore[arg-type]
        for old in HERE.glob("v*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for name in (f"v{FORMAT_VERSION}.parquet", f"v{FORMAT_VERSION}"):
            archive(folder, HERE / name, options, RunOptions(workers=1))
        rows = content(HERE / f"v{FORMAT_VERSION}.parquet")
        (HERE / f"v{FORMAT_VERSION}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(Counter(row["codec"] for row in rows))


if __name__ == "__main__":
    main()
