"""Bytes of the entropy coder above the ideal code length, beside constriction's coders on the same symbols.

    python benchmarks/entropy.py [FACES] [--quality 50] [--limit 256]

FACES is a directory of images of one size; without it, faces are drawn. Ideal is -log2 of the integer tables'
probabilities over the coded symbols. constriction's coders write words of 32 bits and get the very same tables.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from synthetic_faces import draw_faces

from zippy_batch.codecs.latent.codec import LatentCodec, grid
from zippy_batch.codecs.model_file import load_model
from zippy_batch.codecs.rans import TOTAL, Tables
from zippy_batch.images.pixels import Picture, read_picture
from zippy_batch.sources.directory import list_files, read_file

Constriction = constriction.stream


def load(folder: Path, limit: int) -> list[NDArray[np.uint8]]:
    """Pictures of the folder's most common grid, at most `limit`."""
    pictures = [read_picture(read_file(folder, f)) for f in list_files(folder).files]
    pixels = [p.pixels for p in pictures if isinstance(p, Picture)]
    grids = [grid(*p.shape[:2]) for p in pixels]
    common = max(set(grids), key=grids.count)
    return [p for p, g in zip(pixels, grids, strict=True) if g == common][:limit]


def constriction_bytes(residuals: NDArray[np.int32], tables: NDArray[np.uint8], book: Tables, coder: str) -> int:
    """Size of one image's symbols; escapes are left out of the comparison by clipping to the radius."""
    encoder = Constriction.queue.RangeEncoder() if coder == "range" else Constriction.stack.AnsCoder()
    for i in np.unique(tables[tables > 0]):
        r = residuals[tables == i].clip(-book.radius[i], book.radius[i])
        symbols = np.where(r < 0, -2 * r - 1, 2 * r).astype(np.int32)
        cumulative = book.cumulative[book.offset[i] : book.offset[i] + 2 * book.radius[i] + 3]
        model = Constriction.model.Categorical(np.diff(cumulative.astype(np.float64)) / TOTAL, perfect=False)
        encoder.encode(symbols, model) if coder == "range" else encoder.encode_reverse(symbols, model)
    return 4 * len(encoder.get_compressed())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", nargs="?", type=Path)
    parser.add_argument("--quality", type=int, default=50)
    parser.add_argument("--limit", type=int, default=256)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if a.faces is None:
            draw_faces(Path(folder), a.limit)
        images = load(a.faces or Path(folder), a.limit)
    codec = LatentCodec(load_model("faces"))
    ideal = ours = by_range = by_ans = coded = 0.0
    for start in range(0, len(images), 64):
        batch = images[start : start + 64]
        residuals, tables = codec.encode_symbols(batch, [a.quality] * len(batch))
        ideal += codec.tables.bits(residuals, tables) / 8
        ours += sum(map(len, codec.encode(batch, [a.quality] * len(batch))))
        coded += np.count_nonzero(tables)
        for r, t in zip(residuals, tables, strict=True):
            by_range += constriction_bytes(r, t, codec.tables, "range")
            by_ans += constriction_bytes(r, t, codec.tables, "ans")
    n = len(images)
    print(f"{n} images at quality {a.quality}: {coded / n:.0f} coded symbols, ideal {ideal / n:.2f} B per image")
    for name, size in (("zippy-batch rANS", ours), ("constriction range", by_range), ("constriction ANS", by_ans)):
        print(f"{name:20s} {size / n:8.2f} B per image   {(size - ideal) / n:+.2f} B above ideal")


if __name__ == "__main__":
    main()
