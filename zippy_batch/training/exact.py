"""Fit the exact codec: bits of JPEG coefficients, over many sizes, samplings and quantisation tables.

    python -m zippy_batch.training.exact fit RUN --data DIR [--data DIR ...] --minutes 300
    python -m zippy_batch.training.exact export RUN exact.safetensors

The loss of a batch is its bits per block of the first component.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.errors import UsageError
from zippy_batch.exact.blocks import ROLES, planes_of
from zippy_batch.exact.export import model_arrays
from zippy_batch.exact.network import CONTEXT_PLANES, Architecture, Network, Seen
from zippy_batch.latent.features import ONE
from zippy_batch.training.coefficients import CoefficientPool, CoefficientSpecs, cached_pools, default_specs
from zippy_batch.training.latent import NOTICE
from zippy_batch.training.run import TrainOptions, fit, load_checkpoint
from zippy_batch.weights import model_from_bytes, serialise

MIN_IMAGES = 8
"""Below this there is nothing to train on."""
HELD_OUT = 64
"""Images of the larger pools that are kept for the log, at most a quarter of a pool."""
_POSITIONS = 2400
_LOSS_SCALE = 0.1


def bits_of(network: Network, pool: CoefficientPool, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
    """Bits of some images of a pool, by plane: (n, 1 + groups), ends first."""
    n = len(numbers)
    blocks = planes_of([pool.frame(i) for i in numbers])
    seen: dict[str, Tensor] = {}
    bits: dict[str, Tensor] = {}
    for name in blocks:
        component = ROLES.index(name)
        c = torch.from_numpy(pool.coefficients[component][numbers].astype(np.float32))
        steps = torch.from_numpy(pool.tables[component][numbers].astype(np.float32))
        layout = blocks[name]
        static = torch.from_numpy(layout.features[layout.feature_row]).view(n, -1, layout.features.shape[1]) / ONE
        before = [seen[k].flatten(0, 1)[torch.from_numpy(layout.places[k])].view(n, c.shape[1] * c.shape[2], -1)
                  for k in CONTEXT_PLANES[name] if k in seen]  # fmt: skip
        own = Seen.of(c, steps)
        bits[name] = network.planes[name](own, c, steps, static, before)
        seen[name] = own.whole().flatten(1, 2)
    return bits


class ExactTask:
    """Training of one network on pools of coefficients (`run.Task`)."""

    def __init__(self, architecture: Architecture, pools: Sequence[CoefficientPool], positions: int) -> None:
        if sum(map(len, pools)) < MIN_IMAGES:
            raise UsageError(f"{sum(map(len, pools))} JPEG images to train on, need {MIN_IMAGES}")
        self.network = Network(architecture)
        self._pools = list(pools)
        self._positions = positions
        weights = np.array([pool.weight for pool in pools])
        self._weights = weights / weights.sum()
        self._held = [min(HELD_OUT, len(pool) // 4) for pool in pools]
        self._set_units()

    def card(self) -> dict[str, Any]:
        return self.network.architecture.to_dict()

    def is_hidden(self, name: str) -> bool:
        return any(part in name for part in ("hidden", "taps"))

    def loss(self, rng: np.random.Generator) -> Tensor:
        which = int(rng.choice(len(self._pools), p=self._weights))
        pool, most = self._pools[which], len(self._pools[which]) - self._held[which]
        numbers = rng.integers(0, most, min(most, max(1, self._positions // pool.blocks)))
        bits = bits_of(self.network, pool, numbers)
        total = torch.stack([plane.sum() for plane in bits.values()]).sum()
        return _LOSS_SCALE * total / (len(numbers) * pool.blocks)

    def evaluate(self, network: Network) -> str:
        """Bytes per image of the pools that training draws from most."""
        shown = []
        for which in np.argsort(-self._weights, kind="stable")[:6]:
            pool, held = self._pools[which], self._held[which]
            if not held:
                continue
            total = 0.0
            for numbers in np.array_split(np.arange(len(pool) - held, len(pool)), -(-held * pool.blocks // 8192)):
                total += sum(plane.sum().item() for plane in bits_of(network, pool, numbers).values())
            height, width, parts = pool.geometry
            shown.append(f"{height}x{width}/{len(parts)}: {total / held / 8:.1f} B")
        return "  ".join(shown)

    def _set_units(self) -> None:
        """The network's unit for each coefficient: its mean size in these pools, to a power of two."""
        for name in CONTEXT_PLANES:
            k, total, count = ROLES.index(name), np.zeros(64), 0.0
            for pool, weight in zip(self._pools, self._weights, strict=True):
                if len(pool.tables) > k:
                    some = pool.coefficients[k][:200].astype(np.float64) * pool.tables[k][:200, None, None]
                    total += weight * np.abs(some).mean((0, 1, 2))
                    count += weight
            unit = np.exp2(np.rint(np.log2(np.clip(total / max(count, 1e-9), 1, 1024))))
            self.network.planes[name].unit.copy_(torch.from_numpy(unit))  # type: ignore[operator]


def train(
    roots: Sequence[Path],
    run: Path,
    architecture: Architecture,
    o: TrainOptions,
    specs: CoefficientSpecs | None = None,
) -> None:
    """Train in `run` until its minutes are used up, or go on."""
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    pools = cached_pools(roots, specs or default_specs(), run / "pools", o.threads)
    fit(ExactTask(architecture, pools, o.positions), run, o)


def export(run: Path, name: str) -> bytes:
    """A run's averaged weights -> the bytes of a model file."""
    state = load_checkpoint(run / "checkpoint.pt")
    network = Network(Architecture.from_dict(state["card"]))
    network.load_state_dict(state["average"])
    card = {
        "name": name,
        "codec": "exact",
        "architecture": network.architecture.to_dict(),
        "training": {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)},
        "notice": NOTICE,
    }
    return serialise(model_arrays(network), card)


app = typer.Typer(add_completion=False, help="Train the exact codec and export it as a model file.")


@app.command("fit")
def fit_command(
    run: Annotated[Path, typer.Argument(help="Directory of the run: pools, checkpoint, log.")],
    data: Annotated[
        list[Path], typer.Option(help="Directory of photographs, searched recursively; may be given again.")
    ],
    minutes: Annotated[float, typer.Option(help="Length of the whole run in minutes of training.")] = 300.0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 2,
) -> None:
    """Train, or go on from the run's checkpoint."""
    train(data, run, Architecture(), TrainOptions(minutes=minutes, positions=_POSITIONS, threads=threads))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    output: Annotated[Path, typer.Argument(help="Model file to write (.safetensors).")],
    name: Annotated[str, typer.Option(help="Name in the model's card.")] = "exact",
) -> None:
    """Write the averaged weights as a model file."""
    data = export(run, name)
    temporary = output.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(output)
    print(f"{output}: {len(data)} bytes, id {model_from_bytes(data).id}")


if __name__ == "__main__":
    app()
