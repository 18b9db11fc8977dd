"""Images per second into a training loop, and bytes on disk, of an archive and of what people train from today.

    python benchmarks/loader.py [--images 2000] [--larger 256] [--workers 0,1,2] [--only NAME;...] [--shares]
                                [--json FILE]

Faces are drawn: `--images` of 42x42 and `--larger` of 178x218, JPEG of quality 75, in ten classes. Everything holds
these same JPEG files and gives batches of 64 uint8 RGB tensors in a shuffled order to a loop that only looks at them,
with the same number of workers on the same cores, in one run after another. A first epoch starts workers and fills
caches; the second one is timed.

    archive, lossy     what the codec made of the JPEG files: fewer bytes, other pixels (the line before the table says
                       how near); `stream` is zb.torch.StreamingArchive, `map` is zb.torch.ArchiveDataset,
                       `cached` the same with a file of what the first epoch decoded, which is not counted in bytes
    archive, exact     bit for bit
    folder of JPEGs    what torchvision's ImageFolder does, in the few lines that it takes: torchvision itself does not
                       install beside every build of torch
    webdataset         a tar for every 1,000 images
    hugging face       Parquet with JPEG bytes, as a datasets.Dataset with an Image column
    mosaicml           MDS shards of JPEG bytes; its part for torchvision is left out where torchvision does not load
    litdata            chunks of JPEG bytes

What is not installed is left out and named. Bytes are those of the files; a folder takes more on most file systems,
which give each file whole blocks, so its blocks are shown too.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from synthetic_faces import draw_face
from torch.utils.data import DataLoader, Dataset, default_collate

import zippy_batch as zb

BATCH = 64
CLASSES = 10


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(picture.convert("RGB")).transpose(2, 0, 1).copy())


def decoded(data: bytes) -> torch.Tensor:
    return to_tensor(Image.open(io.BytesIO(data)))


class Folder(Dataset):
    """ImageFolder: a class for each directory, files in order, one opened at a time."""

    def __init__(self, root: Path) -> None:
        classes = sorted(path.name for path in root.iterdir())
        self.files = [(str(path), n) for n, name in enumerate(classes) for path in sorted((root / name).iterdir())]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[place]
        with open(path, "rb") as file:
            return to_tensor(Image.open(file)), label


Loader = Callable[[int], Any]
"""Number of workers -> an iterable of batches, a new epoch each time."""
Made = tuple[Path, Loader]


def loader_of(data: Any, shuffle: bool = True, **options: Any) -> Loader:
    def make(workers: int) -> Any:
        return DataLoader(
            data, batch_size=BATCH, shuffle=shuffle or None, num_workers=workers,
            persistent_workers=workers > 0, **options,
        )  # fmt: skip

    return make


def folder(faces: Path, work: Path) -> Made:
    return faces, loader_of(Folder(faces))


def archived(faces: Path, path: Path, exact: str) -> Path:
    if not path.exists():
        zb.archive(faces, path, exact=exact, labels="folders", device="cpu", workers=1)
        psnr = zb.stats(path).total.quality.psnr_mean_db
        print(f"{path.name}: {'bit for bit' if psnr is None else f'{psnr:.1f} dB on average'}")
    return path


def lossy_stream(faces: Path, work: Path) -> Made:
    path = archived(faces, work / "lossy.parquet", "never")
    return path, loader_of(zb.torch.StreamingArchive(path, shuffle=True, batch_size=BATCH), shuffle=False)


def lossy_map(faces: Path, work: Path) -> Made:
    path = archived(faces, work / "lossy.parquet", "never")
    return path, loader_of(zb.torch.ArchiveDataset(path))


def lossy_cached(faces: Path, work: Path) -> Made:
    path = archived(faces, work / "lossy.parquet", "never")
    return path, loader_of(zb.torch.ArchiveDataset(path, cache=work))


def exact_stream(faces: Path, work: Path) -> Made:
    path = archived(faces, work / "exact.parquet", "always")
    return path, loader_of(zb.torch.StreamingArchive(path, shuffle=True, batch_size=BATCH), shuffle=False)


def webdataset(faces: Path, work: Path) -> Made:
    import webdataset as wds

    (work / "wds").mkdir()
    with wds.ShardWriter(str(work / "wds" / "%05d.tar"), maxcount=1000, verbose=0) as sink:
        for place, (path, label) in enumerate(shuffled(faces)):
            sink.write({"__key__": f"{place:08d}", "jpg": Path(path).read_bytes(), "cls": label})
    shards = sorted(map(str, (work / "wds").iterdir()))
    # a shard is the least that a worker gets
    data = (
        wds.WebDataset(shards, shardshuffle=100, empty_check=False, seed=0)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(decoded, int)
    )
    return work / "wds", loader_of(data, shuffle=False)


def hugging_face(faces: Path, work: Path) -> Made:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = Folder(faces).files
    images = [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path, _ in files]
    path = work / "jpegs.parquet"
    pq.write_table(pa.table({"image": images, "label": [label for _, label in files]}), path, row_group_size=1000)
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    found = datasets.Dataset.from_parquet(str(path), features=features, cache_dir=str(work / "cache"))
    return path, loader_of(found.with_transform(hf_tensors))


def hf_tensors(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"image": [to_tensor(picture) for picture in rows["image"]], "label": rows["label"]}


def tensors(row: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return decoded(row["image"]), row["label"]


def mosaicml(faces: Path, work: Path) -> Made:
    import streaming

    with streaming.MDSWriter(out=str(work / "mds"), columns={"image": "bytes", "label": "int"}) as sink:
        for path, label in Folder(faces).files:
            sink.write({"image": Path(path).read_bytes(), "label": label})

    def make(workers: int) -> Any:
        # one data set waits for ever where it meets another number of workers
        streaming.base.util.clean_stale_shared_memory()
        data = streaming.StreamingDataset(local=str(work / "mds"), shuffle=True, batch_size=BATCH)
        return loader_of(data, shuffle=False, collate_fn=collated)(workers)

    return work / "mds", make


def collated(rows: list[dict[str, Any]]) -> Any:
    return default_collate([tensors(row) for row in rows])


def lit_row(item: tuple[str, int]) -> dict[str, Any]:
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def litdata(faces: Path, work: Path) -> Made:
    import litdata as lit

    lit.optimize(lit_row, Folder(faces).files, str(work / "lit"), chunk_bytes="16MB", num_workers=1, verbose=False)
    data = lit.StreamingDataset(str(work / "lit"), shuffle=True, transform=tensors)

    def make(workers: int) -> Any:
        return lit.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)

    return work / "lit", make


CASES: dict[str, tuple[Callable[[Path, Path], Made], str | None]] = {
    "archive, lossy, stream": (lossy_stream, None),
    "archive, lossy, map": (lossy_map, None),
    "archive, lossy, cached": (lossy_cached, None),
    "archive, exact, stream": (exact_stream, None),
    "folder of JPEGs": (folder, None),
    "webdataset": (webdataset, "webdataset"),
    "hugging face": (hugging_face, "datasets"),
    "mosaicml": (mosaicml, "streaming"),
    "litdata": (litdata, "litdata"),
}
"""Name -> what makes its files and its loader, and the library that it needs."""


def shuffled(faces: Path) -> Iterator[tuple[str, int]]:
    files = Folder(faces).files
    for place in np.random.default_rng(0).permutation(len(files)):
        yield files[place]


def draw(root: Path, width: int, height: int, count: int) -> Path:
    for place in range(count):
        path = root / f"class_{place % CLASSES}" / f"{place:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        face = draw_face(np.random.default_rng([0, place]), height)
        left = (height - width) // 2
        face.crop((left, 0, left + width, height)).save(path, "JPEG", quality=75, subsampling=2)
    return root


def rate(loader: Any, images: int, name: str) -> float:
    """Images per second of the second epoch. A loop looks at each batch, so that nothing is passed over."""
    for epoch in range(2):
        started, seen, total = time.perf_counter(), 0, 0
        for batch in loader:
            pictures = batch["image"] if isinstance(batch, dict) else batch[0]
            total += int(pictures[:, 0, 0, 0].sum())
            seen += len(pictures)
        if seen != images:
            raise SystemExit(f"{name} gave {seen} images in epoch {epoch}, not {images}")
    return images / (time.perf_counter() - started)


@contextmanager
def timed_codecs() -> Iterator[list[float]]:
    """Seconds of the processor that decoding takes inside, in this process."""
    from zippy_batch.codecs.exact.codec import ExactCodec
    from zippy_batch.codecs.latent.codec import LatentCodec

    taken: list[float] = []
    kinds: list[Any] = [ExactCodec, LatentCodec]
    whole = [kind.decode_checked for kind in kinds]

    def timed(decode: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def decoding(codec: Any, items: Any) -> Any:
            started = time.process_time()
            try:
                return decode(codec, items)
            finally:
                taken.append(time.process_time() - started)

        return decoding

    for kind, decode in zip(kinds, whole, strict=True):
        kind.decode_checked = timed(decode)
    try:
        yield taken
    finally:
        for kind, decode in zip(kinds, whole, strict=True):
            kind.decode_checked = decode


def codec_share(loader: Any) -> float:
    """Of the processor's time of an epoch without workers, what the codec takes: the rest is reading and handing on."""
    for _ in loader:
        pass
    with timed_codecs() as taken:
        started = time.process_time()
        for _ in loader:
            pass
        return sum(taken) / (time.process_time() - started)


def bytes_of(path: Path) -> tuple[int, int]:
    """Bytes of the files, and of the blocks that hold them."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    found = [file.stat() for file in files]
    return sum(one.st_size for one in found), sum(one.st_blocks * 512 for one in found)


def without_torchvision() -> None:
    """Let `streaming` load without the part of it that needs torchvision, which nothing here uses: a torchvision of
    another build than torch's does not load."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))


def missing(library: str) -> str | None:
    """Why a library cannot be had; None where it can."""
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed"
    try:
        if library == "streaming":
            without_torchvision()
        importlib.import_module(library)
    except Exception as error:
        # what a library wants at import, and in which version, is its own affair
        return f"{library} does not load: {type(error).__name__}: {error}"
    return None


def measure(size: str, faces: Path, images: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, (make, library) in CASES.items():
        if options.only and name not in options.only.split(";"):
            continue
        if library is not None and (why := missing(library)):
            print(f"{name}: left out, {why}")
            continue
        work = faces.parent / f"{faces.name}-files"
        work.mkdir(exist_ok=True)
        try:
            path, loader = make(faces, work)
            if options.shares and name.startswith("archive"):
                print(f"{size} {name}: the codec takes {codec_share(loader(0)):.1%} of the processor's time")
            rates = {workers: rate(loader(workers), images, name) for workers in options.workers}
        except Exception as error:
            if library is None:
                raise
            # versions that do not go together are no reason to lose the other figures
            print(f"{name}: left out, it failed: {type(error).__name__}: {str(error).splitlines()[-1:]}")
            continue
        size_bytes, blocks = bytes_of(path)
        found.append(
            {"size": size, "name": name, "images": images, "bytes": size_bytes, "blocks": blocks, "rates": rates}
        )
        print(f"{size} {name}: {size_bytes} bytes, {rates}", file=sys.stderr)
    return found


def table(rows: list[dict[str, Any]], workers: list[int]) -> str:
    lines = [["", "bytes/image", "in blocks", *(f"{n} workers" for n in workers)]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        each = [f"{row[name] / row['images']:,.0f}" for name in ("bytes", "blocks")]
        lines.append([row["name"], *each, *(f"{row['rates'][n]:,.0f}" for n in workers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--larger", type=int, default=256)
    parser.add_argument("--workers", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", help="names, separated by semicolons")
    parser.add_argument("--shares", action="store_true", help="also say what part of the time the codec takes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "This DataLoader will create")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"{len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, one thread a process")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for width, height, images in ((42, 42, options.images), (178, 218, options.larger)):
            if images:
                faces = draw(Path(temporary) / f"{width}x{height}", width, height, images)
                rows = measure(f"{width}x{height}", faces, images, options)
                found += rows
                print(f"\n{images} images of {width}x{height}, images/s\n\n{table(rows, options.workers)}\n")
    torch.set_num_threads(threads)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
