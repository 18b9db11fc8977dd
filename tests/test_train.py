from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, pictures, tiny_network

from zippy_batch.errors import ModelError, UsageError
from zippy_batch.latent.codec import LatentCodec, LatentItem
from zippy_batch.latent.features import LEVEL_MAX
from zippy_batch.training.latent import export, loss_parts, train
from zippy_batch.training.pictures import PoolSpec, batches, build_pools, cached_pools, list_images
from zippy_batch.training.run import TrainOptions
from zippy_batch.weights import model_from_bytes

SPECS = [PoolSpec(24, 24, 48, 0.7), PoolSpec(30, 40, 16, 0.2, jpeg=0.0), PoolSpec(16, 16, 12, 0.1, drawn=True)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i, picture in enumerate(pictures(24, 96, 80)):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    (folder / "not-an-image.jpg").write_bytes(b"nothing")
    return folder


def options(minutes: float) -> TrainOptions:
    return TrainOptions(minutes=minutes, positions=72, threads=1, checkpoint_minutes=10)


def test_pools_have_the_sizes_asked_for_and_skip_what_is_no_image(photographs: Path, tmp_path: Path) -> None:
    paths = list_images([photographs])
    pools = build_pools(paths, SPECS, workers=1)
    assert [p.shape[1:] for p in pools] == [(24, 24, 3), (30, 40, 3), (16, 16, 3)]
    assert all(len(p) >= s.count * 0.8 for p, s in zip(pools, SPECS, strict=True))
    again = cached_pools([photographs], SPECS, tmp_path, workers=1)
    assert all(np.array_equal(a, b) for a, b in zip(pools, again, strict=True))
    (tmp_path / "pool-00.npy").unlink()
    with pytest.raises(FileNotFoundError):  # the second call reads the cache rather than cutting again
        cached_pools([photographs], SPECS, tmp_path, workers=1)


def test_batches_fill_their_positions_with_one_size() -> None:
    pools = [np.zeros((9, 24, 24, 3), np.uint8), np.zeros((0, 30, 40, 3), np.uint8)]
    stream = batches(pools, SPECS[:2], 90, np.random.default_rng(0))
    assert {next(stream).shape for _ in range(20)} == {(10, 24, 24, 3)}


def test_training_lowers_the_loss_resumes_and_exports_a_model(photographs: Path, tmp_path: Path) -> None:
    train([photographs], tmp_path, TINY, options(0.05), SPECS)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    train([photographs], tmp_path, TINY, options(0.1), SPECS)
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] > 10
    assert 3 < first["seconds"] < second["seconds"]
    train([photographs], tmp_path, TINY, options(0.1), SPECS)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == second["step"]

    images = pictures(16, 40, 40, seed=5)
    level = torch.full((16,), LEVEL_MAX / 2)
    network = tiny_network()
    before: list[float] = []
    after: list[float] = []
    for weights, out in ((network.state_dict(), before), (second["average"], after)):
        network.load_state_dict(weights)
        with torch.no_grad():
            bpp, mse = loss_parts(network.eval(), images, level, False, noise=False)
        out.extend((bpp + 0.01 * mse).tolist())
    assert np.mean(after) < np.mean(before)

    model = model_from_bytes(export(tmp_path, "mine", batches_of_samples=8, specs=SPECS))
    assert model.name == "mine"
    assert model.card["training"]["steps"] == second["step"]
    codec = LatentCodec(model)
    payload = codec.encode([images[0]], [75])[0]
    assert codec.decode([LatentItem(payload, 40, 40, False, 75)])[0].shape == (40, 40, 3)
    assert export(tmp_path, "mine", batches_of_samples=8, specs=SPECS) == model.data


def test_the_integer_model_costs_little_more_than_the_float_one(photographs: Path, tmp_path: Path) -> None:
    train([photographs], tmp_path, TINY, options(0.05), SPECS)
    codec = LatentCodec(model_from_bytes(export(tmp_path, "mine", strength=0.0, batches_of_samples=16, specs=SPECS)))
    images = build_pools(list_images([photographs]), SPECS, 1, seed=3)[0]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = tiny_network()
    network.load_state_dict(state["average"])
    quality = 70
    with torch.no_grad():
        level = torch.full((len(images),), float(codec.level_of(quality)))
        bpp, _ = loss_parts(network.eval(), images, level, False, noise=False)
    ideal = bpp.sum().item() * 24 * 24 / 8
    residuals, tables = codec.encode_symbols(list(images), [quality] * len(images))
    assert codec.book.bits(residuals, tables) / 8 < 1.03 * ideal


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training images"):
        train([tmp_path], tmp_path / "run", TINY, options(0.01), SPECS)


def test_divergence_ends_with_a_clear_error(photographs: Path, tmp_path: Path) -> None:
    wild = TrainOptions(minutes=5, positions=72, threads=1, rate_adam=1e30)
    with pytest.raises(ModelError, match="diverged"):
        train([photographs], tmp_path, TINY, wild, SPECS)
