from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import TINY_EXACT, Steps, pictures, tiny_exact_network

from zippy_batch.codecs.exact.codec import ExactCodec, ExactItem
from zippy_batch.codecs.exact.network import ExactArchitecture, ExactNetwork
from zippy_batch.codecs.model_file import model_from_bytes
from zippy_batch.errors import UsageError
from zippy_batch.jpeg.file import parse
from zippy_batch.training import coefficients, exact
from zippy_batch.training.coefficients import (
    CoefficientPool,
    CoefficientSpecs,
    ThumbnailSpec,
    build_pools,
    cached_pools,
)
from zippy_batch.training.exact import ExactTask, bits_of, export, set_units
from zippy_batch.training.run import Schedule, fit

SPECS = CoefficientSpecs(
    (
        ThumbnailSpec(24, 24, "4:2:0", 40, 0.5),
        ThumbnailSpec(20, 36, "grey", 12, 0.1),
        ThumbnailSpec(32, 32, "4:2:2", 8, 0.1),
    ),
    0.3,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i, picture in enumerate(pictures(20, 64, 56)):
        Image.fromarray(picture).save(folder / f"{i:02d}.jpg", quality=80)
    Image.fromarray(pictures(1, 50, 40)[0]).save(folder / "odd.jpg", quality=80)
    Image.fromarray(pictures(1, 50, 48)[0]).save(folder / "lossless.png")
    (folder / "not-an-image.jpg").write_bytes(b"nothing")
    return folder


def options(minutes: float) -> Schedule:
    return Schedule(minutes=minutes, positions=72, checkpoint_minutes=10)


def test_pools_hold_thumbnails_and_the_sources_own_coefficients(photographs: Path, tmp_path: Path) -> None:
    pools = build_pools(sorted(photographs.iterdir()), SPECS, workers=1)
    assert [(p.geometry[:2], len(p.geometry[2])) for p in pools] == [
        *(((24, 24), 3), ((20, 36), 1), ((32, 32), 3)),
        *(((64, 56), 3), ((50, 40), 3)),
    ]
    assert all(0.8 * s.count <= len(p) <= s.count for p, s in zip(pools, SPECS.thumbnails, strict=False))
    assert sum(p.weight for p in pools) == pytest.approx(1.0)
    whole = parse((photographs / "odd.jpg").read_bytes())
    assert all(np.array_equal(a, b[0]) for a, b in zip(whole.coefficients, pools[-1].coefficients, strict=True))
    paths = sorted(photographs.iterdir())
    again = cached_pools(paths, SPECS, tmp_path, workers=1, sources="a")
    stored = cached_pools(paths, SPECS, tmp_path, workers=1, sources="a")
    (tmp_path / "pools.json").write_bytes(b'{"key": "torn')
    (tmp_path / "pools.npz").write_bytes(b"half")
    mended = cached_pools(paths, SPECS, tmp_path, workers=2, sources="a")
    for one, other in ((pools, again), (again, stored), (again, mended)):
        for a, b in zip(one, other, strict=True):
            assert (a.geometry, a.weight) == (b.geometry, b.weight)
            assert all(np.array_equal(x, y) for x, y in zip(a.coefficients, b.coefficients, strict=True))
            assert all(np.array_equal(x, y) for x, y in zip(a.tables, b.tables, strict=True))


def task_on(pools: list[CoefficientPool], architecture: ExactArchitecture = TINY_EXACT) -> ExactTask:
    torch.manual_seed(0)
    network = ExactNetwork(architecture)
    set_units(network, pools)
    return ExactTask(network, pools, positions=72)


def test_training_lowers_the_bits_resumes_and_exports_a_model(photographs: Path, tmp_path: Path) -> None:
    pools = build_pools(sorted(photographs.iterdir()), SPECS, workers=1)
    fit(task_on(pools), tmp_path, options(0.03), clock=Steps())
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    fit(task_on(pools), tmp_path, options(0.06), clock=Steps())
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] > 10
    pool = pools[0]
    network = tiny_exact_network()
    before = sum(b.sum().item() for b in bits_of(network, pool, np.arange(40)).values())
    network.load_state_dict(second["average"])
    after = sum(b.sum().item() for b in bits_of(network, pool, np.arange(40)).values())
    assert after < before

    model = model_from_bytes(export(network, {"name": "mine"}))
    assert (model.name, model.codec) == ("mine", "exact")
    codec = ExactCodec(model)
    images = [(pool.frame(i), tuple(c[i] for c in pool.coefficients)) for i in range(40)]
    payloads = codec.encode(images)
    decoded, damage = codec.decode_checked([ExactItem(p, f) for p, (f, _) in zip(payloads, images, strict=True)])
    assert damage == {}
    assert all(
        np.array_equal(a, b) for d, (_, c) in zip(decoded, images, strict=True) for a, b in zip(d, c, strict=True)
    )
    # integers cost little above the float network's promise, the coder's two bytes aside
    coded = sum(map(len, payloads)) - 2 * len(payloads)
    assert coded == pytest.approx(after / 8, rel=0.02)


def test_sources_take_no_more_memory_than_they_may(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = parse((photographs / "00.jpg").read_bytes())
    size = sum(c.nbytes for c in one.coefficients)
    own = CoefficientSpecs((), 1.0)
    paths = sorted(photographs.iterdir())[:20]
    monkeypatch.setattr(coefficients, "COEFFICIENT_POOL_BYTES", 17 * size)
    (capped,) = build_pools(paths, own, workers=1)
    monkeypatch.setattr(coefficients, "COEFFICIENT_BYTES_IN_ALL", 16 * size)
    (fewer,) = build_pools(paths, own, workers=1)
    assert (len(capped), len(fewer)) == (17, 16)
    # the same choice, cut short
    assert np.array_equal(capped.coefficients[0][:16], fewer.coefficients[0])


def test_of_large_sources_a_piece_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pictures(1, 70, 100)[0]).save(tmp_path / "large.jpg", quality=80)
    monkeypatch.setattr(coefficients, "LARGEST_SIDE", 72)
    (pool,) = build_pools([tmp_path / "large.jpg"], CoefficientSpecs((), 1.0), workers=1)
    assert pool.geometry[:2] == (70, 64)
    whole = parse((tmp_path / "large.jpg").read_bytes()).coefficients
    (left,) = (i for i in range(5) if np.array_equal(whole[0][:, i : i + 8], pool.coefficients[0][0]))
    assert left % 2 == 0
    assert np.array_equal(whole[1][:, left // 2 : left // 2 + 4], pool.coefficients[1][0])
    assert sum(plane.sum().item() for plane in bits_of(tiny_exact_network(), pool, np.arange(1)).values()) > 0


@pytest.mark.parametrize("larger", [False, True])
def test_images_of_many_sizes_are_held_out_whole(tmp_path: Path, larger: bool) -> None:
    for i in range(12):
        Image.fromarray(pictures(1, 24 + i, 32)[0]).save(tmp_path / f"{i:02d}.jpg")
    pools = build_pools(sorted(tmp_path.iterdir()), CoefficientSpecs((), 1.0), workers=1)
    if larger:
        pools += build_pools([tmp_path / "00.jpg"] * 20, CoefficientSpecs((), 1.0), workers=1)
    task = task_on(pools)
    score = task.evaluate(task.network)
    assert score.loss > 0
    assert ("rare sizes" in score.text, "24x32" in score.text) == (True, larger)
    drawn: set[int] = set()

    def noted(network: ExactNetwork, pool: CoefficientPool, numbers: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        drawn.add(id(pool))
        return bits_of(network, pool, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "bits_of", noted)
        for seed in range(80):
            task.loss(np.random.default_rng(seed))
    assert len(drawn) == len(pools) - 3


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="to train on"):
        ExactTask(tiny_exact_network(), [])


def test_a_run_of_another_network_is_refused(photographs: Path, tmp_path: Path) -> None:
    pools = build_pools(sorted(photographs.iterdir()), SPECS, workers=1)
    fit(task_on(pools), tmp_path, options(0.02), clock=Steps())
    with pytest.raises(UsageError, match="another network"):
        fit(task_on(pools, ExactArchitecture(TINY_EXACT.luma, TINY_EXACT.luma)), tmp_path, options(0.04), clock=Steps())
