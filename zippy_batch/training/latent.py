"""Fit the lossy codec: rate + lambda * distortion over the whole range of quality levels.

A run is one directory: cached pools, a checkpoint written every few minutes, a log. Running the same command again
goes on from the checkpoint:

    python -m zippy_batch.training.latent fit RUN --data DIR [--data DIR ...] --minutes 100
    python -m zippy_batch.training.latent export RUN model.safetensors --name faces

The loss of an image is

    (bits / pixels + lambda(level) * MSE) / lambda(level) ** 0.4

with a random level per image; the division lets a relative saving count about the same at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.errors import UsageError
from zippy_batch.latent.codec import LatentCodec
from zippy_batch.latent.context import QUALITIES
from zippy_batch.latent.export import entropy_arrays, export_arrays, threshold_array
from zippy_batch.latent.features import LEVEL_MAX, LEVEL_STEP, spatial_features
from zippy_batch.latent.network import Architecture, Network, as_float, lambda_of, to_input
from zippy_batch.training.pictures import Pool, PoolSpec, batches, cached_pools, default_specs, draw_batch
from zippy_batch.training.run import TrainOptions, fit, load_checkpoint
from zippy_batch.weights import model_from_bytes, serialise

MIN_IMAGES = 8
"""Below this there is nothing to train on."""

NOTICE = (
    "Weights trained on photographs from research data sets (CelebA, UTKFace, SCUT-FBP5500, All-Age-Faces, LFW "
    "and others), some of them for non-commercial research only. "
    "The code's Apache-2.0 licence does not cover the weights; see docs/models.md."
)


GREY_SHARE = 0.06
"""Of the batches: turned to grey."""


def loss_parts(network: Network, images: Pool, level: Tensor, grey: bool, noise: bool = True) -> tuple[Tensor, Tensor]:
    """Bits per pixel (N,) and mean squared error on 0..255 (N,)."""
    target, padded = to_input(images)
    h, w = target.shape[2:]
    spatial = as_float(spatial_features(h, w, grey))[None]
    out, bits = network(padded, spatial, level, noise)
    out = out[:, :, :h, :w]
    if grey:
        out, target = out.mean(1, keepdim=True), target[:, :1]
    if not noise:
        out = (out.clamp(0, 1) * 255).round() / 255
    return bits / (h * w), 255.0**2 * ((out - target) ** 2).mean((1, 2, 3))


def to_grey(images: Pool) -> Pool:
    luma = (images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)
    return np.repeat(luma[..., None], 3, -1)


def random_levels(n: int, rng: np.random.Generator) -> Tensor:
    """Levels over the whole range, denser where most archives are made."""
    wide, dense = rng.random(n), 0.1 + 0.6 * rng.random(n)
    return torch.from_numpy(np.where(rng.random(n) < 0.35, dense, wide).astype(np.float32)) * LEVEL_MAX


def evaluate(network: Network, images: Pool, levels: Sequence[int]) -> list[tuple[int, float, float]]:
    """(level, bytes per image, PSNR of the pooled error in dB) with real rounding."""
    rows = []
    with torch.no_grad():
        for level in levels:
            bpp, mse = [], []
            for i in range(0, len(images), 64):
                part = images[i : i + 64]
                b, d = loss_parts(network, part, torch.full((len(part),), float(level)), False, noise=False)
                bpp.append(b)
                mse.append(d)
            size = torch.cat(bpp).mean().item() * images.shape[1] * images.shape[2] / 8
            rows.append((level, size, 10 * math.log10(255**2 / torch.cat(mse).mean().item())))
    return rows


class LatentTask:
    """Training of one network on pools of pictures (`run.Task`); the first pool is scored for the log."""

    def __init__(
        self, architecture: Architecture, pools: Sequence[Pool], specs: Sequence[PoolSpec], o: TrainOptions
    ) -> None:
        if len(pools[0]) < MIN_IMAGES:
            size = f"{specs[0].width}x{specs[0].height}"
            raise UsageError(f"{len(pools[0])} training images of {size} px, need {MIN_IMAGES}")
        self.network = Network(architecture)
        held = min(256, len(pools[0]) // 4)
        self._held_out = pools[0][-held:]
        self._pools, self._specs, self._o = [pools[0][:-held], *pools[1:]], specs, o

    def card(self) -> dict[str, Any]:
        return self.network.architecture.to_dict()

    def is_hidden(self, name: str) -> bool:
        return any(part in name for part in ("expand", "project", "hidden", "neighbours"))

    def loss(self, rng: np.random.Generator) -> Tensor:
        images = draw_batch(self._pools, self._specs, self._o.positions, rng)
        grey = rng.random() < GREY_SHARE
        level = random_levels(len(images), rng)
        lam = lambda_of(level)
        bpp, mse = loss_parts(self.network, to_grey(images) if grey else images, level, grey)
        return ((bpp + lam * mse) / lam**0.4).mean() * 0.02**0.4

    def evaluate(self, network: Network) -> str:
        rows = evaluate(network, self._held_out, [k * LEVEL_STEP for k in (1, 3, 5, 7, 9, 11)])
        return "  ".join(f"{size:.0f} B {psnr:.2f} dB" for _, size, psnr in rows)


def train(
    roots: Sequence[Path], run: Path, architecture: Architecture, o: TrainOptions, specs: Sequence[PoolSpec] = ()
) -> None:
    """Train in `run` until its minutes are used up, or go on. `specs` are the pools to cut, `default_specs()` where
    none are given."""
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    specs = specs or default_specs()
    pools = cached_pools(roots, specs, run / "pools", o.threads)
    fit(LatentTask(architecture, pools, specs, o), run, o)


def load_network(run: Path) -> tuple[Network, dict[str, float]]:
    """The averaged weights of a run's checkpoint, and how long it was trained (steps, minutes)."""
    state = load_checkpoint(run / "checkpoint.pt")
    network = Network(Architecture.from_dict(state["card"]))
    network.load_state_dict(state["average"])
    return network.eval(), {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}


def count_residuals(codec: LatentCodec, samples: Sequence[Pool], seed: int = 0) -> list[NDArray[np.float64]]:
    """How often each residual came up under each scale index, in the order of the tables, over batches at random
    qualities.
    """
    radius = codec.book.radius
    counts = [np.zeros(2 * r + 2) for r in radius]
    rng = np.random.default_rng(seed)
    for images in samples:
        residuals, tables = codec.encode_symbols(list(images), rng.integers(1, QUALITIES + 1, len(images)).tolist())
        for i in range(1, len(radius)):
            of_table = tables == i
            symbols = codec.book.symbols(residuals[of_table], tables[of_table])
            counts[i] += np.bincount(symbols, minlength=len(counts[i]))
    return counts


def export(
    run: Path, name: str, strength: float = 0.15, batches_of_samples: int = 160, specs: Sequence[PoolSpec] = ()
) -> bytes:
    """A run's averaged weights -> the bytes of a model file, integer layers calibrated and tables counted on its
    pools.
    """
    network, length = load_network(run)
    specs = specs or default_specs()
    pools = [np.load(run / "pools" / f"pool-{i:02d}.npy", mmap_mode="r") for i in range(len(specs))]
    stream = batches(pools, specs, 1152, np.random.default_rng(1))
    samples = [next(stream) for _ in range(batches_of_samples)]
    arrays = export_arrays(network, samples[: batches_of_samples // 4])
    arrays["encoder.threshold"] = threshold_array(arrays, strength)
    card = {
        "name": name,
        "architecture": network.architecture.to_dict(),
        "training": {**length, "images": {f"{s.height}x{s.width}": len(p) for s, p in zip(specs, pools, strict=True)}},
        "notice": NOTICE,
    }
    for _ in range(
        2
    ):  # counted once under the prior's thresholds, then under the thresholds that follow from the counts
        codec = LatentCodec(model_from_bytes(serialise(arrays, card)))
        arrays |= entropy_arrays(count_residuals(codec, samples))
        arrays["encoder.threshold"] = threshold_array(arrays, strength)
    return serialise(arrays, card)


app = typer.Typer(add_completion=False, help="Train the lossy codec and export it as a model file.")


@app.command("fit")
def fit_command(
    run: Annotated[Path, typer.Argument(help="Directory of the run: pools, checkpoint, log.")],
    data: Annotated[
        list[Path], typer.Option(help="Directory of photographs, searched recursively; may be given again.")
    ],
    minutes: Annotated[float, typer.Option(help="Length of the whole run in minutes of training.")] = 100.0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
) -> None:
    """Train, or go on from the run's checkpoint."""
    train(data, run, Architecture(), TrainOptions(minutes=minutes, threads=threads))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    output: Annotated[Path, typer.Argument(help="Model file to write (.safetensors).")],
    name: Annotated[str, typer.Option(help="Name in the model's card.")] = "faces",
    strength: Annotated[float, typer.Option(help="How strongly rounding trades error for bits.")] = 0.15,
) -> None:
    """Write the averaged weights as a model file."""
    data = export(run, name, strength)
    temporary = output.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(output)
    print(f"{output}: {len(data)} bytes, id {model_from_bytes(data).id}")


if __name__ == "__main__":
    app()
