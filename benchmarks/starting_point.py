"""The starting point, a 56-float autoencoder for small faces, beside an archive and AVIF of the same held-out faces.

    python benchmarks/starting_point.py [DIRECTORY] [--epochs 20] [--small] [--limit 200] [--json FILE]

The network is that of the case study ZippyNet (github.com/SerChirag/ZippyNet): 40x40 RGB in, two convolutions with
pooling, dense layers of 800, 400 and 56 units, and back; its last layer, 25,600 x 4,800, holds 122.9 of its 128.7
million parameters. Its layers and its training are published: dropout of a quarter behind poolings and dense layers,
the last one included, so on pixels; mean squared error, Adam, batches of 32, a tenth held out, 300 epochs. What is
written here follows that in PyTorch, with the defaults of Keras (Glorot's initialisation, epsilon 1e-7). Neither its
weights nor the order of its images are public, so the held-out tenth is drawn by --seed; --epochs is 20, because 300
take more than an hour on two cores. More codes of 56 floats show what the idea can do:

    published, over 0.75   the same network. Pixels of which a quarter is dropped and the others are divided by 0.75 are
                           predicted best by 0.75 of the pixel; this undoes it
    linear                 the first 56 principal components of the training faces
    small                  with --small: 1.4 million parameters, no dropout, a convolution as last layer, faces mirrored
                           at random; trained for as many seconds as the published one

Without a directory, 400 faces of 42x42 are drawn. PSNR is in dB, RGB, of the squared error pooled over the held-out
faces. The autoencoders are measured at the size they work at (--size, 40), against the shrunk faces they were given;
zippy-batch (without exact rows) and AVIF code the held-out files at their own size, as `compare` does. Bytes of the
56 floats are those of a .npy file of shape (1, 56) (352; published as 332), of the floats alone, and of a Parquet
file with one row per face (name and floats) under zstd level 19; those of zippy-batch and AVIF are of whole Parquet
files as well. With few files the footer weighs: each spends more bytes per image on 67 files than on thousands.
Nobody is charged for weights. Bytes "at this PSNR" are interpolated between settings on a logarithmic scale; "<"
marks a coder whose lowest setting is already better. Ctrl-C prints what is known by then.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from zippy_batch.compare.curves import Point, log_bytes_at
from zippy_batch.compare.measure import CompareOptions, compare
from zippy_batch.compare.report import OWN_LOSSY, ComparisonRow
from zippy_batch.compare.stored import parquet_bytes
from zippy_batch.images.metrics import mean_squared_error, psnr_db

FLOATS = 56
DROPOUT = 0.25
BATCH = 32
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
CONTENDERS = (OWN_LOSSY, "avif", "avif-speed0")
QUALITIES = (1, 10, 25, 40, 55, 70, 85)


class Autoencoder(nn.Module):
    """(N, 3, S, S) in 0..1 -> `encoder` -> (N, 56) -> `decoder` -> the same shape."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def published(size: int) -> Autoencoder:
    dense = nn.Linear(16 * size**2, 3 * size**2)
    end = [nn.Flatten(), dense, nn.Sigmoid(), nn.Dropout(DROPOUT), nn.Unflatten(1, (3, size, size))]
    return _convolutional(size, (800, 400), DROPOUT, end)


def small(size: int) -> Autoencoder:
    return _convolutional(size, (200, 100), 0.0, [nn.ConvTranspose2d(16, 3, 3, padding=1), nn.Sigmoid()])


def _convolutional(size: int, widths: tuple[int, int], dropout: float, end: Sequence[nn.Module]) -> Autoencoder:
    """`size` a multiple of 4; `end` turns (N, 16, S, S) into pixels."""
    wide, middle = widths
    flat, quarter = 2 * size**2, size // 4
    encoder = nn.Sequential(
        *[nn.Conv2d(3, 16, 3, padding=1), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Dropout(dropout)],
        *[nn.Conv2d(16, 32, 3, padding=1), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Dropout(dropout)],
        nn.Flatten(),
        *[nn.Linear(flat, wide), nn.LeakyReLU(0.3), nn.Dropout(dropout)],
        *[nn.Linear(wide, middle), nn.LeakyReLU(0.3), nn.Dropout(dropout)],
        *[nn.Linear(middle, FLOATS), nn.LeakyReLU(0.3)],
    )
    decoder = nn.Sequential(
        *[nn.Linear(FLOATS, middle), nn.LeakyReLU(0.3), nn.Dropout(dropout)],
        *[nn.Linear(middle, wide), nn.LeakyReLU(0.3), nn.Dropout(dropout)],
        *[nn.Linear(wide, flat), nn.LeakyReLU(0.3), nn.Dropout(dropout)],
        nn.Unflatten(1, (32, quarter, quarter)),
        *[nn.ConvTranspose2d(32, 32, 3, padding=1), nn.LeakyReLU(0.3), nn.Upsample(scale_factor=2)],
        *[nn.ConvTranspose2d(32, 16, 3, padding=1), nn.LeakyReLU(0.3), nn.Upsample(scale_factor=2)],
        *end,
    )
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
    return Autoencoder(encoder, decoder)


def linear(pixels: NDArray[np.uint8]) -> Autoencoder:
    """The code of 56 numbers that is best for `pixels`, (N, 3, S, S), among linear ones; fewer than 56 if N is less."""
    flat = pixels.reshape(len(pixels), -1) / 255
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:FLOATS]
    encoder, decoder = nn.Linear(flat.shape[1], len(axes)), nn.Linear(len(axes), flat.shape[1])
    state = {"weight": torch.from_numpy(axes), "bias": torch.from_numpy(-axes @ mean)}
    encoder.load_state_dict(state)
    decoder.load_state_dict({"weight": torch.from_numpy(axes.T), "bias": torch.from_numpy(mean)})
    return Autoencoder(
        nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, tuple(pixels.shape[1:])))
    )


@dataclass(frozen=True)
class Faces:
    """A directory, split in two; pixels are (N, 3, S, S) uint8."""

    directory: Path
    held_out_paths: tuple[Path, ...]
    held_out: NDArray[np.uint8]
    train: NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """The held-out faces as 56 floats each, kept in one way."""

    name: str
    kept_as: str
    bytes_per_image: float
    psnr_db: float


@dataclass
class Known:
    """What has been measured so far."""

    head: str = ""
    training: dict[str, str] = field(default_factory=dict)
    codes: dict[str, list[Stored]] = field(default_factory=dict)
    curves: dict[str, list[ComparisonRow]] = field(default_factory=dict)
    """By contender."""

    def lines(self) -> list[str]:
        rivals = [name for name in self.curves if name != OWN_LOSSY]
        columns = ["56 floats", "kept as", "bytes/image", "PSNR dB"]
        columns += [f"{name}, bytes at this PSNR" for name in (OWN_LOSSY, *rivals)] + [
            f"{OWN_LOSSY}, PSNR at these bytes"
        ]
        curves = {name: points_of(rows) for name, rows in self.curves.items()}
        mine = curves.get(OWN_LOSSY, [])
        out = [self.head, *(f"{name}: {text}" for name, text in self.training.items()), ""]
        out += [_row(columns), _row(["---"] * len(columns))]
        for one in [one for rows in self.codes.values() for one in rows]:
            cells = [one.name, one.kept_as, f"{one.bytes_per_image:.0f}", f"{one.psnr_db:.2f}"]
            cells += [bytes_text(curves.get(name, []), one.psnr_db) for name in (OWN_LOSSY, *rivals)]
            out.append(_row([*cells, psnr_text(mine, one.bytes_per_image)]))
        out += ["", _row(["coder", "setting", "bytes/image", "PSNR dB"]), _row(["---"] * 4)]
        for row in [row for rows in self.curves.values() for row in rows]:
            out.append(_row([row.contender, row.setting, f"{row.stored_bytes:.0f}", f"{row.psnr_db:.2f}"]))
        return out


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def points_of(rows: Sequence[ComparisonRow]) -> list[Point]:
    return [Point(row.stored_bytes, row.psnr_db) for row in rows if row.psnr_db is not None]


def bytes_text(points: Sequence[Point], at_db: float) -> str:
    if not points:
        return "-"
    lowest = min(points, key=lambda point: point.quality)
    if at_db < lowest.quality:
        return f"< {lowest.bytes_per_image:.0f} (has {lowest.quality:.1f} dB)"
    log_bytes = log_bytes_at(points, [at_db])[0]
    return "-" if np.isnan(log_bytes) else f"{math.exp(log_bytes):.0f}"


def psnr_text(points: Sequence[Point], at_bytes: float) -> str:
    ordered = sorted(points, key=lambda point: point.bytes_per_image)
    known = [point.bytes_per_image for point in ordered]
    if not known or not known[0] <= at_bytes <= known[-1]:
        return "-"
    return f"{np.interp(math.log(at_bytes), np.log(known), [point.quality for point in ordered]):.1f}"


def split(directory: Path, size: int, limit: int, seed: int) -> Faces:
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = paths[:: max(1, len(paths) // limit)][:limit] if limit else paths
    if len(paths) < 10:
        sys.exit(f"{directory} holds {len(paths)} images; a tenth is held out, so 10 are the least")
    held_out = np.random.default_rng(seed).permutation(len(paths)) < len(paths) // 10
    pixels = np.stack([shrunk(path, size) for path in paths])
    held_out_paths = tuple(path for path, held in zip(paths, held_out, strict=True) if held)
    return Faces(directory, held_out_paths, pixels[held_out], pixels[~held_out])


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def shrunk(path: Path, size: int) -> NDArray[np.uint8]:
    """(3, S, S); a pixel is the mean of the area it covers, as in the original."""
    image = Image.fromarray(pixels_of(path)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


def epochs(net: Autoencoder, pixels: NDArray[np.uint8], seed: int, mirror: bool) -> Iterator[tuple[float, float]]:
    """Train without end; yields after each epoch its mean loss (pixels in 0..1) and the seconds of training so far."""
    x = torch.from_numpy(pixels).float() / 255
    # "fused" is the same rule in a sixth of the time
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-7, fused=True)
    random = torch.Generator().manual_seed(seed)
    seconds = 0.0
    while True:
        began, total = time.perf_counter(), 0.0
        net.train()
        for chosen in torch.randperm(len(x), generator=random).split(BATCH):
            batch = x[chosen]
            if mirror:
                batch = torch.where(torch.rand(len(batch), 1, 1, 1, generator=random) < 0.5, batch.flip(3), batch)
            adam.zero_grad()
            loss = nn.functional.mse_loss(net(batch), batch)
            loss.backward()
            adam.step()
            total += loss.item() * len(batch)
        seconds += time.perf_counter() - began
        yield total / len(x), seconds


def fit(
    name: str,
    net: Autoencoder,
    faces: Faces,
    known: Known,
    enough: Callable[[int, float], bool],
    seed: int,
    mirror: bool = False,
    every_s: float = 0.0,
) -> float:
    """Train until `enough` of the number of epochs and their seconds; returns the seconds.

    Measures the held-out faces and prints a line at most once in `every_s` seconds.
    """
    due = 0.0
    for epoch, (loss, seconds) in enumerate(epochs(net, faces.train, seed, mirror), 1):
        done = enough(epoch, seconds)
        if done or seconds >= due:
            due = seconds + every_s
            known.codes[name] = stored(name, net, faces)
            count = f"{net.parameter_count / 1e6:.1f} M parameters"
            known.training[name] = f"{count}, {epoch} epochs in {seconds:.0f} s, loss {loss:.5f}"
            psnr = known.codes[name][0].psnr_db
            print(f"  {name} epoch {epoch}: loss {loss:.5f}, held out {psnr:.2f} dB, {seconds:.0f} s", flush=True)
        if done:
            return seconds
    raise AssertionError("epochs never end by themselves")


@torch.inference_mode()
def stored(name: str, net: Autoencoder, faces: Faces, gain: float = 1.0) -> list[Stored]:
    """The held-out faces in every way to keep 56 floats; `gain` multiplies the decoder's pixels."""
    net.eval()
    floats = net.encoder(torch.from_numpy(faces.held_out).float() / 255).numpy()
    halves = floats.astype(np.float16)

    def psnr(code: NDArray) -> float:
        x_hat = net.decoder(torch.from_numpy(code.astype(np.float32))) * (255 * gain)
        back = x_hat.round().clamp(0, 255).byte().numpy()
        pairs = zip(faces.held_out.transpose(0, 2, 3, 1), back.transpose(0, 2, 3, 1), strict=True)
        # (H, W, 3) each
        return psnr_db(float(np.mean([mean_squared_error(a, b) for a, b in pairs])))

    return [
        Stored(name, form.format(code.dtype), bytes_per_image, psnr_of_code)
        for code, psnr_of_code in ((floats, psnr(floats)), (halves, psnr(halves)))
        for form, bytes_per_image in (
            ("{} .npy", npy_bytes(code[:1])),
            ("{}", code[0].nbytes),
            ("{} in Parquet", in_parquet(faces, [one.tobytes() for one in code])),
        )
    ]


def npy_bytes(code: NDArray) -> int:
    out = io.BytesIO()
    np.save(out, code)
    return out.tell()


def in_parquet(faces: Faces, blobs: Sequence[bytes]) -> float:
    """Bytes per held-out face of a Parquet file of names and `blobs`."""
    return parquet_bytes([os.fsencode(path.name) for path in faces.held_out_paths], blobs) / len(blobs)


def curves_of(faces: Faces) -> dict[str, list[ComparisonRow]]:
    """What zippy-batch and AVIF make of the held-out files, by contender."""
    with tempfile.TemporaryDirectory() as folder:
        for path in faces.held_out_paths:
            copy = Path(folder) / path.relative_to(faces.directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        found = compare(Path(folder), CompareOptions(limit=0, only=CONTENDERS, qualities=QUALITIES, verify=False))
    return {name: found.curve(name) for name in CONTENDERS}


def measure(faces: Faces, options: argparse.Namespace, known: Known) -> None:
    """Fills `known`; what needs no training comes first, so that an interrupted run has it."""
    size = "x".join(str(side) for side in reversed(pixels_of(faces.held_out_paths[0]).shape[:2]))
    known.head = (
        f"{faces.directory.name}: {len(faces.train)} faces to train on, {len(faces.held_out)} held out, {size}; "
        f"autoencoders at {options.size}x{options.size}"
    )
    print(known.head, flush=True)
    known.curves = curves_of(faces)
    known.codes["linear"] = stored("linear", linear(faces.train), faces)
    torch.manual_seed(options.seed)
    net = published(options.size)
    seconds = fit("published", net, faces, known, lambda epoch, _: epoch >= options.epochs, options.seed)
    known.codes["published, over 0.75"] = stored("published, over 0.75", net, faces, 1 / (1 - DROPOUT))
    if options.small:

        def as_long(_epoch: int, spent: float) -> bool:
            return spent >= seconds

        fit("small", small(options.size), faces, known, as_long, options.seed, mirror=True, every_s=seconds / 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIRECTORY")
    parser.add_argument("--epochs", type=int, default=20, help="of the published network")
    parser.add_argument("--small", action="store_true", help="train a small network for as long, too")
    parser.add_argument("--size", type=int, default=40, help="pixels of a side that the networks see; a multiple of 4")
    parser.add_argument("--limit", type=int, default=0, help="images of the directory, spread over it; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.size < 4 or options.size % 4:
        parser.error(f"--size must be a multiple of 4, not {options.size}")
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {options.epochs}")
    known = Known()
    with tempfile.TemporaryDirectory() as folder:
        directory = options.directory
        if directory is None:
            from synthetic_faces import draw_faces

            directory = Path(folder) / "drawn-42x42"
            draw_faces(directory, 400)
        try:
            measure(split(directory.resolve(), options.size, options.limit, options.seed), options, known)
        except KeyboardInterrupt:
            print("\ninterrupted; known so far:")
    print("\n".join(known.lines()))
    if options.json:
        options.json.write_text(json.dumps(asdict(known), indent=2) + "\n")


if __name__ == "__main__":
    main()
