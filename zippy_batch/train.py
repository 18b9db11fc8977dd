"""Fit the lossy codec: rate + lambda * distortion over the whole range of quality levels.

A run is one directory: cached pools, a checkpoint written every few minutes, a log. Running the same command again
goes on from the checkpoint:

    python -m zippy_batch.train fit RUN --data DIR [--data DIR ...] --minutes 100
    python -m zippy_batch.train export RUN model.safetensors --name faces

The loss of an image is

    (bits / pixels + lambda(level) * MSE) / lambda(level) ** 0.4

with a random level per image; the division lets a relative saving count about the same at every rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codec import LatentCodec
from zippy_batch.errors import ModelError, UsageError
from zippy_batch.latent.context import QUALITIES
from zippy_batch.latent.export import entropy_arrays, export_arrays, threshold_array
from zippy_batch.latent.features import LEVEL_MAX, LEVEL_STEP, spatial_features
from zippy_batch.latent.network import Architecture, Network, as_float, lambda_of, to_input
from zippy_batch.training_data import Pool, PoolSpec, batches, cached_pools, default_specs
from zippy_batch.weights import model_from_bytes, serialise

MIN_IMAGES = 8
"""Below this there is nothing to train on."""

NOTICE = (
    "Weights trained on photographs from research data sets (CelebA, UTKFace, SCUT-FBP5500, All-Age-Faces, LFW "
    "and others), some of them for non-commercial research only. "
    "The code's Apache-2.0 licence does not cover the weights; see docs/models.md."
)


@dataclass(frozen=True)
class TrainOptions:
    minutes: float = 90.0
    """Length of the whole run in minutes of training time, over all resumed parts."""
    positions: int = 3456
    """8x8 blocks per step; 96 thumbnails of 42x42."""
    rate_adam: float = 1e-3
    rate_muon: float = 0.004
    decay_from: float = 0.4
    """Share of the run after which the learning rate falls, as a cosine, to 2 %."""
    grey: float = 0.06
    """Share of the batches turned to grey."""
    threads: int = 2
    checkpoint_minutes: float = 5.0
    seed: int = 0


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


def random_levels(n: int, generator: torch.Generator) -> Tensor:
    """Levels over the whole range, denser where most archives are made."""
    wide = torch.rand(n, generator=generator)
    dense = 0.1 + 0.6 * torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.35, dense, wide) * LEVEL_MAX


def optimisers(network: Network, o: TrainOptions) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the hidden matrices, AdamW for the rest."""
    hidden = [
        p
        for name, p in network.named_parameters()
        if p.ndim == 2 and any(part in name for part in ("expand", "project", "hidden", "neighbours"))
    ]
    ids = {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in ids]
    return [
        torch.optim.AdamW(rest, o.rate_adam, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(hidden, o.rate_muon, weight_decay=0.05, momentum=0.95, adjust_lr_fn="original"),
    ]


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


class Average:
    """Exponential moving average of the weights, which is what gets exported."""

    def __init__(self, network: Network) -> None:
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: Network, step: int) -> None:
        decay = min(0.998, (step + 1) / (step + 20))
        current = network.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [current[k] for k in self.weights], 1 - decay)


def fit(
    roots: Sequence[Path], run: Path, architecture: Architecture, o: TrainOptions, specs: Sequence[PoolSpec] = ()
) -> None:
    """Train in `run` until its minutes are used up; `run/checkpoint.pt` holds the state and the averaged weights.

    `specs` are the pools to cut, `default_specs()` where none are given; the first is scored for the log.
    """
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    specs = specs or default_specs()
    pools = cached_pools(roots, specs, run / "pools", o.threads)
    if len(pools[0]) < MIN_IMAGES:
        raise UsageError(f"{len(pools[0])} training images of {specs[0].width}x{specs[0].height} px, need {MIN_IMAGES}")
    held = min(256, len(pools[0]) // 4)
    held_out = pools[0][-held:]
    pools[0] = pools[0][:-held]
    network = Network(architecture)
    opts = optimisers(network, o)
    average = Average(network)
    spent, step = 0.0, 0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.weights = state["average"]
        for optimiser, saved in zip(opts, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        spent, step = state["seconds"], state["step"]
    rng = np.random.default_rng(o.seed + step)
    generator = torch.Generator().manual_seed(o.seed + step)
    stream = batches(pools, specs, o.positions, rng)
    log = (run / "log.txt").open("a", buffering=1)
    shadow = Network(architecture)

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "architecture": architecture.to_dict(),
                "network": network.state_dict(),
                "average": average.weights,
                "optimisers": [p.state_dict() for p in opts],
                "seconds": spent,
                "step": step,
            },
            temporary,
        )
        temporary.replace(checkpoint)

    begun, last_save, recent = time.monotonic() - spent, spent, []
    total, misses = 60 * o.minutes, 0
    while spent < total:
        progress = spent / total
        factor = min(1.0, (step + 1) / 200)
        if progress > o.decay_from:
            factor *= max(0.02, 0.5 * (1 + math.cos(math.pi * (progress - o.decay_from) / (1 - o.decay_from))))
        for optimiser, rate in zip(opts, (o.rate_adam, o.rate_muon), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        images = next(stream)
        grey = rng.random() < o.grey
        level = random_levels(len(images), generator)
        lam = lambda_of(level)
        with torch.autocast("cpu", torch.bfloat16):
            bpp, mse = loss_parts(network, to_grey(images) if grey else images, level, grey)
        loss = ((bpp + lam * mse) / lam**0.4).mean() * 0.02**0.4
        network.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            misses = 0
            for optimiser in opts:
                optimiser.step()
            average.update(network, step)
        else:
            misses += 1
            if misses == 20:
                raise ModelError(
                    f"training diverged at step {step}: 20 losses in a row are not finite; "
                    "lower the learning rates and resume"
                )
        step += 1
        recent.append(loss.item())
        spent = time.monotonic() - begun
        if spent - last_save > 60 * o.checkpoint_minutes or spent >= total or step == 100:
            last_save = spent
            save()
            shadow.load_state_dict(average.weights)
            rows = evaluate(shadow, held_out, [k * LEVEL_STEP for k in (1, 3, 5, 7, 9, 11)])
            shown = "  ".join(f"{s:.0f} B {p:.2f} dB" for _, s, p in rows)
            log.write(f"{spent / 60:.1f} min  step {step}  loss {np.mean(recent):.4f}  norm {norm:.2f}  {shown}\n")
            recent = []
            spent = time.monotonic() - begun
    save()


def load_network(run: Path) -> tuple[Network, dict[str, float]]:
    """The averaged weights of a run's checkpoint, and how long it was trained (steps, minutes)."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    network = Network(Architecture.from_dict(state["architecture"]))
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
    fit(data, run, Architecture(), TrainOptions(minutes=minutes, threads=threads))


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
