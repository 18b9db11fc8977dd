from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, Steps, pictures, tiny_exact_model, tiny_model, tiny_network

from zippy_batch.codecs.exact.export import model_arrays
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem, Pixels
from zippy_batch.codecs.latent.export import export_arrays
from zippy_batch.codecs.latent.features import LEVEL_MAX, spatial_features
from zippy_batch.codecs.latent.network import LatentNetwork
from zippy_batch.codecs.model_file import Model, load_model, model_from_bytes, serialise
from zippy_batch.config import ArchiveOptions, TrainOptions
from zippy_batch.errors import ModelError, OutputExists, StagingMismatch, UsageError
from zippy_batch.images.metrics import ssim
from zippy_batch.run import pipeline
from zippy_batch.run.plan import BatchLimit
from zippy_batch.training import latent, savings, train_job
from zippy_batch.training import pictures as pictures_of_training
from zippy_batch.training.latent import (
    QUANTISED_FROM,
    LatentTask,
    _as_archived,
    _of_one_kind,
    _ssim,
    evaluate,
    export,
    loss_parts,
    to_grey,
)
from zippy_batch.training.pictures import (
    Pool,
    PoolSpec,
    _within,
    batches,
    build_pools,
    cached_pools,
    chosen_specs,
    draw_batch,
)
from zippy_batch.training.run import Schedule, fit
from zippy_batch.training.savings import Gain
from zippy_batch.training.session import train
from zippy_batch.training.sources import _size_of, gather
from zippy_batch.training.warm_start import exact_network, latent_network

TRAINED, HELD_OUT = 21, 3
"""Of the photographs below, by their names."""
SPECS = [PoolSpec(24, 24, 48, 0.7), PoolSpec(30, 40, 16, 0.2, jpeg=0.0), PoolSpec(16, 16, 12, 0.1, drawn=True)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i, picture in enumerate(pictures(24, 96, 80)):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    (folder / "not-an-image.jpg").write_bytes(b"nothing")
    return folder


def options(minutes: float) -> Schedule:
    return Schedule(minutes=minutes, positions=72, checkpoint_minutes=10)


def test_pools_have_the_sizes_asked_for_and_skip_what_is_no_image(photographs: Path, tmp_path: Path) -> None:
    paths = sorted(photographs.iterdir())
    pools = build_pools(paths, SPECS, workers=1)
    assert [p.shape[1:] for p in pools] == [(24, 24, 3), (30, 40, 3), (16, 16, 3)]
    assert all(len(p) >= s.count * 0.8 for p, s in zip(pools, SPECS, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(pools, build_pools(paths, SPECS, workers=2), strict=True))
    again = cached_pools(paths, SPECS, tmp_path, workers=1, sources="a")
    assert all(np.array_equal(a, b) for a, b in zip(pools, again, strict=True))
    (tmp_path / "pool-00.npy").unlink()
    with pytest.raises(FileNotFoundError):  # the second call reads the cache rather than cutting again
        cached_pools(paths, SPECS, tmp_path, workers=1, sources="a")
    assert len(cached_pools(paths, SPECS, tmp_path, workers=1, sources="b")) == len(SPECS)
    (tmp_path / "pools.json").write_bytes(b'{"key": "torn')
    (tmp_path / "pool-00.npy").write_bytes(b"half")
    again = cached_pools(paths, SPECS, tmp_path, workers=1, sources="b")
    assert all(np.array_equal(a, b) for a, b in zip(pools, again, strict=True))


def test_a_cache_whose_building_was_interrupted_is_built_again(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(photographs.iterdir())
    cached_pools(paths, SPECS, tmp_path, workers=1, sources="a")
    monkeypatch.setattr(pictures_of_training, "build_pools", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_pools(paths, SPECS, tmp_path, workers=1, sources="b")
    assert not (tmp_path / "pools.json").exists()


def interrupted(*arguments: object) -> list[Pool]:
    raise KeyboardInterrupt


def test_pools_take_no_more_memory_than_they_may() -> None:
    specs = _within([PoolSpec(100, 100, 1000, 0.5), PoolSpec(50, 100, 2000, 0.5)], 30_000_000)
    assert [s.count for s in specs] == [500, 1000]
    assert _within(specs, 30_000_000) == specs


def test_images_are_mirrored_where_their_blocks_stay_where_they_were() -> None:
    left = np.zeros((40, 16, 48, 3), np.uint8)
    left[:, :, :8] = 200
    rng = np.random.default_rng(0)
    for spec, turns in (
        (PoolSpec(16, 48, 40, 1.0, native=True, whole=True), True),
        (PoolSpec(16, 48, 40, 1.0, native=True, whole=True, mirror=False), False),
        (PoolSpec(16, 40, 40, 1.0, native=True, whole=True), False),
        (PoolSpec(16, 40, 40, 1.0, native=True), True),
        (PoolSpec(16, 42, 40, 1.0, native=True), False),
        (PoolSpec(16, 48, 40, 1.0), False),
    ):
        batch = draw_batch([left[:, :, : spec.width]], [spec], 600, rng)
        assert {bool(image[0, -1, 0]) for image in batch} == ({True, False} if turns else {False})
    assert (left[:, :, 8:] == 0).all()


def test_batches_fill_their_positions_with_one_size() -> None:
    pools = [np.zeros((9, 24, 24, 3), np.uint8), np.zeros((0, 30, 40, 3), np.uint8)]
    stream = batches(pools, SPECS[:2], 90, np.random.default_rng(0))
    assert {next(stream).shape for _ in range(20)} == {(10, 24, 24, 3)}


@cache
def pools_of(folder: Path) -> list[Pool]:
    """Read only."""
    return build_pools(sorted(folder.iterdir()), SPECS, workers=1)


def task_on(pools: list[Pool]) -> LatentTask:
    torch.manual_seed(0)
    return LatentTask(LatentNetwork(TINY), pools, SPECS, positions=72)


def test_training_lowers_the_loss_and_resumes(photographs: Path, tmp_path: Path) -> None:
    pools = pools_of(photographs)
    fit(task_on(pools), tmp_path, options(0.02), clock=Steps())
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    fit(task_on(pools), tmp_path, options(0.05), clock=Steps())
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] > 10
    assert 1.2 <= first["seconds"] < second["seconds"]
    fit(task_on(pools), tmp_path, options(0.05), clock=Steps())
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


def test_the_integer_model_costs_little_more_than_the_float_one(photographs: Path, tmp_path: Path) -> None:
    pools = pools_of(photographs)
    fit(task_on(pools), tmp_path, options(0.05), clock=Steps())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = tiny_network()
    network.load_state_dict(state["average"])
    model = model_from_bytes(export(network, pools, SPECS, {"name": "mine"}, batches_of_samples=16, strength=0.0))
    codec = LatentCodec(model)
    images = build_pools(sorted(photographs.iterdir()), SPECS, 1, seed=3)[0]
    quality = 70
    with torch.no_grad():
        level = torch.full((len(images),), float(codec.level_of(quality)))
        bpp, _ = loss_parts(network.eval(), images, level, False, noise=False)
    ideal = bpp.sum().item() * 24 * 24 / 8
    residuals, tables = codec.encode_symbols(list(images), [quality] * len(images))
    assert codec.tables.bits(residuals, tables) / 8 < 1.03 * ideal


def test_the_last_part_of_a_run_rounds_and_still_learns(photographs: Path) -> None:
    task = task_on(pools_of(photographs))
    network = task.network
    assert not task.reach(0.0)
    assert not network.has_units
    assert task.reach(QUANTISED_FROM)
    assert network.has_units
    assert not task.reach(1.0)
    rng = np.random.default_rng(0)
    for _ in range(12):
        task.loss(rng).backward()
    # small grids have no positions so far away
    still = [name for name, p in network.named_parameters() if ".far." not in name and not torch.any(p.grad)]
    assert still == []


def test_too_few_images_are_refused(photographs: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 8 images of one size.*give 4 of 24x24 px, 4 of 40x30 px.*--sizes"):
        task_on([pool[:4] for pool in pools_of(photographs)])


def test_the_pool_that_is_scored_is_one_with_images(photographs: Path) -> None:
    pools = pools_of(photographs)
    task = task_on([pools[0][:0], *pools[1:]])
    assert task.evaluate(task.network).loss > 0
    task.loss(np.random.default_rng(0))


def test_grey_pictures_are_trained_and_scored_as_they_are_archived() -> None:
    grey = to_grey(pictures(16, 24, 24))
    spec = [PoolSpec(24, 24, 16, 1.0)]
    torch.manual_seed(0)
    network = LatentNetwork(TINY)
    seen: list[bool] = []

    def noted(h: int, w: int, is_grey: bool) -> np.ndarray:
        seen.append(is_grey)
        return spatial_features(h, w, is_grey)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "spatial_features", noted)
        task = LatentTask(network, [grey], spec, positions=72)
        task.loss(np.random.default_rng(0))
        task.evaluate(network)
        assert set(seen) == {True}
        seen.clear()
        both = np.concatenate([grey, pictures(16, 24, 24)])
        evaluate(network, both, [50])
        assert seen == [False, True]
        kept, is_grey = _of_one_kind(both[8:])
        assert (len(kept), is_grey) == (8, True)
    assert [image.ndim for image in _as_archived(both[14:18])] == [2, 2, 3, 3]


def test_divergence_ends_with_a_clear_error(photographs: Path, tmp_path: Path) -> None:
    wild = Schedule(minutes=5, positions=72, rate_adam=1e30)
    with pytest.raises(ModelError, match="diverged"):
        fit(task_on(pools_of(photographs)), tmp_path, wild)


def test_a_damaged_checkpoint_is_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"checkpoint.pt is no checkpoint.*--restart"):
        fit(task_on(pools_of(photographs)), tmp_path, options(0.01), clock=Steps())


def test_a_run_that_is_stopped_leaves_a_checkpoint(photographs: Path, tmp_path: Path) -> None:
    steps = iter([False, False, True])
    progress = fit(task_on(pools_of(photographs)), tmp_path, options(5), is_stopped=lambda: next(steps))
    assert progress.step == torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_scores_of_an_earlier_version_are_not_compared_with(photographs: Path, tmp_path: Path) -> None:
    pools, checkpoint = pools_of(photographs), tmp_path / "checkpoint.pt"
    fit(task_on(pools), tmp_path, options(5), is_stopped=lambda: True)
    state = torch.load(checkpoint, weights_only=True)
    del state["scoring"]
    torch.save({**state, "best_loss": 0.0}, checkpoint)
    fit(task_on(pools), tmp_path, options(5), is_stopped=lambda: True)
    assert torch.load(checkpoint, weights_only=True)["best_loss"] > 0


def test_the_loss_measures_ssim_as_the_archive_does() -> None:
    a, b = pictures(1, 30, 26)[0], pictures(1, 30, 26, seed=1)[0]
    tensors = [torch.from_numpy(x.copy()).permute(2, 0, 1)[None].double() / 255 for x in (a, b)]
    assert _ssim(*tensors).item() == pytest.approx(ssim(a, b), abs=1e-3)


# ---- sources ----


def test_sources_are_directories_lists_and_archives(photographs: Path, tmp_path: Path) -> None:
    found = gather([photographs], tmp_path)
    assert (len(found.training), len(found.held_out), found.skipped) == (TRAINED, HELD_OUT, 1)
    assert found.sizes == {(96, 80): TRAINED}
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(path) for path in photographs.iterdir()))
    again = gather([listed], tmp_path)
    assert {*again.training, *again.held_out} == {*found.training, *found.held_out}
    pipeline.archive(photographs, tmp_path / "out.parquet", ArchiveOptions(exact="always", device="cpu"))
    again = gather([tmp_path / "out.parquet"], tmp_path)
    assert sorted(p.name for p in again.training) == sorted(p.name for p in found.training)


def test_files_that_are_added_bring_none_that_was_trained_on_among_those_held_out(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    folder = tmp_path / "faces"
    trained: set[str] = set()
    for count in (*range(16, 60), 400, 1500):
        for i in range(count):
            (folder / f"{i % 7}").mkdir(parents=True, exist_ok=True)
            (folder / f"{i % 7}" / f"{i}.png").write_bytes(image.getvalue())
        found = gather([folder], tmp_path / "run")
        assert not trained & {path.name for path in found.held_out}
        assert len({*found.held_out, *found.training}) == count
        trained |= {path.name for path in found.training}
    assert len(found.held_out) == 128
    digest = found.digest
    os.utime(folder / "0" / "0.png", (1, 1))
    assert gather([folder], tmp_path / "run").digest != digest


def test_the_size_of_a_large_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    large, late = tmp_path / "large.jpg", tmp_path / "late.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8))
    noise.save(large, quality=95)
    noise.save(late, quality=95, comment=b"x" * 60000, icc_profile=b"y" * 60000)
    assert len(large.read_bytes()) > 1 << 16
    assert _size_of(large) == _size_of(late) == (400, 300)
    # what follows is no longer looked at
    large.write_bytes(large.read_bytes()[: 1 << 16] + b"nothing")
    assert _size_of(large) == (400, 300)


def test_sources_that_are_not_there_are_named(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory, list or archive"):
        gather([tmp_path / "faces"], tmp_path)
    (tmp_path / "list.txt").write_text("absent.jpg\n")
    with pytest.raises(UsageError, match=r"1 of 1 paths are no files, the first: .*absent.jpg"):
        gather([tmp_path / "list.txt"], tmp_path)
    with pytest.raises(UsageError, match="0 images that can be read, and training needs 16"):
        gather([tmp_path], tmp_path)


def test_pools_follow_the_images_sizes() -> None:
    specs = chosen_specs({(42, 42): 900, (112, 96): 100, (50, 50): 3, (400, 300): 20}, True, [])
    assert [(s.height, s.width, s.whole) for s in specs if not s.drawn] == [
        (42, 42, True),
        (112, 96, True),
        (160, 160, False),
        (48, 48, False),
    ]
    assert sum(s.weight for s in specs) == pytest.approx(1)
    both = chosen_specs({(42, 42): 900}, True, [(24, 30)])
    assert [(s.height, s.width) for s in both if not s.drawn] == [(42, 42), (24, 30)]
    assert [s.weight for s in both] == pytest.approx([0.48, 0.48, 0.04])


# ---- the command's job ----


@pytest.fixture
def start(tmp_path: Path) -> str:
    (tmp_path / "tiny.safetensors").write_bytes(tiny_model().data)
    return str(tmp_path / "tiny.safetensors")


STEPS_PER_MINUTE = 200


@pytest.fixture
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the command take as many steps on any machine, and their models are counted on fewer samples."""
    monkeypatch.setattr(train_job, "fit", partial(fit, clock=Steps(60 / STEPS_PER_MINUTE)))
    monkeypatch.setattr(latent, "export", partial(export, batches_of_samples=12))


def quick(model: str, **more: object) -> TrainOptions:
    return TrainOptions(**{"start": model, "minutes": 0.02, "device": "cpu", "sizes": "32x24", **more})  # type: ignore[arg-type]


@pytest.mark.usefixtures("by_steps")
def test_a_model_is_adapted_and_archives_with_it_open_anywhere(photographs: Path, tmp_path: Path, start: str) -> None:
    said: list[str] = []
    report = train([photographs], tmp_path / "mine.safetensors", quick(start), watch=said.append)
    model = load_model(str(tmp_path / "mine.safetensors"))
    assert (report.model_id, report.codec, report.images, report.held_out, report.skipped) == (
        *(model.id, "latent", TRAINED, HELD_OUT, 1),
    )
    # an archive carries either model
    assert report.against_bytes == len(tiny_model().data) > 5000
    more = report.model_bytes - report.against_bytes
    assert replace(report, gain=Gain(2, 2.0, 1.0, 30.0)).to_dict()["gain"]["pays_from_images"] == more + 1 < 5000
    assert report.steps == model.card["training"]["steps"] > 0
    assert model.card["training"]["from"] == tiny_model().id
    assert model.card["sources"] == [photographs.name]
    assert 0 < model.card["exactness"]["largest_sum"] < model.card["exactness"]["limit"] == 1 << 24
    assert f"{TRAINED} images to train on, {HELD_OUT} held out, 1 skipped" in said[0]
    assert report.gain is not None
    assert report.gain.images == HELD_OUT
    pipeline.archive(photographs, tmp_path / "out.parquet", ArchiveOptions(model=str(tmp_path / "mine.safetensors")))
    (tmp_path / "mine.safetensors").unlink()
    restored = pipeline.restore(tmp_path / "out.parquet", tmp_path / "back")
    assert restored.total.images == 25


@pytest.mark.usefixtures("by_steps")
def test_a_finished_run_goes_on_with_more_minutes(photographs: Path, tmp_path: Path, start: str) -> None:
    output = tmp_path / "mine.safetensors"
    first = train([photographs], output, quick(start))
    same = train([photographs], output, quick(start))
    assert (same.steps, same.model_id) == (first.steps, first.model_id)
    stamp = tmp_path / "mine.training" / "run.json"
    known = json.loads(stamp.read_text())
    # begun by a version that knew neither this option nor the files
    stamp.write_text(json.dumps({k: v for k, v in known.items() if k not in ("mirror", "files")}))
    assert train([photographs], output, quick(start, minutes=0.06)).steps > first.steps
    assert json.loads(stamp.read_text()) == known
    with pytest.raises(StagingMismatch, match=r"other sizes; --restart"):
        train([photographs], output, quick(start, sizes="own"))
    train([photographs], output, quick(start, sizes="own"), restart=True)
    assert load_model(str(output)).card["training"]["sizes"] == "own"


@pytest.mark.usefixtures("by_steps")
def test_the_exact_codec_is_adapted_likewise(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for i, picture in enumerate(pictures(30, 32, 40)):
        Image.fromarray(picture).save(folder / f"{i}.jpg")
    (tmp_path / "tiny.safetensors").write_bytes(tiny_exact_model().data)
    options = quick(str(tmp_path / "tiny.safetensors"), codec="exact", minutes=0.4, sizes="own")
    report = train([folder], tmp_path / "mine.safetensors", options)
    assert report.gain is not None
    assert report.gain.images == report.held_out
    assert report.gain.saved_bytes > 0
    assert load_model(str(tmp_path / "mine.safetensors")).codec == "exact"


@pytest.mark.usefixtures("by_steps")
def test_an_interrupted_run_keeps_the_best_so_far(
    photographs: Path, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Steps()

    def interrupting() -> float:
        if clock.looks == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return clock()

    monkeypatch.setattr(train_job, "fit", partial(fit, clock=interrupting))
    with pytest.raises(KeyboardInterrupt):
        train([photographs], tmp_path / "mine.safetensors", quick(start, minutes=30))
    assert load_model(str(tmp_path / "mine.safetensors")).card["training"]["steps"] > 0
    assert (tmp_path / "mine.training" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("mine.pt", {}, "ends in .safetensors"),
        ("no/mine.safetensors", {}, "no such directory; make it first"),
        ("mine.safetensors", {"codec": "exact"}, "of the codec latent, not exact"),
        ("mine.safetensors", {"start": "nobody"}, "no such file, and no built-in model"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    photographs: Path, tmp_path: Path, start: str, output: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train([photographs], tmp_path / output, quick(start, **options))


@pytest.mark.usefixtures("by_steps")
def test_a_run_whose_files_changed_begins_anew_only_when_asked(photographs: Path, tmp_path: Path, start: str) -> None:
    folder, output = tmp_path / "faces", tmp_path / "mine.safetensors"
    shutil.copytree(photographs, folder)
    train([folder], output, quick(start))
    Image.fromarray(pictures(1, 96, 80, seed=9)[0]).save(folder / "more.png")
    with pytest.raises(StagingMismatch, match=r"other files: 25 images of \d+ bytes .* 24 images of .*--restart"):
        train([folder], output, quick(start, minutes=0.04))
    assert train([folder], output, quick(start), restart=True).images == 25 - HELD_OUT


@pytest.mark.usefixtures("by_steps")
def test_a_run_on_an_archive_can_begin_anew(photographs: Path, tmp_path: Path, start: str) -> None:
    pipeline.archive(photographs, tmp_path / "out.parquet", ArchiveOptions(exact="always", device="cpu"))
    output, run = tmp_path / "mine.safetensors", tmp_path / "mine.training"
    (run / "sources").mkdir(parents=True)
    first = train([tmp_path / "out.parquet"], output, quick(start))
    assert train([tmp_path / "out.parquet"], output, quick(start), restart=True).images == first.images
    (run / "run.json").unlink()
    with pytest.raises(UsageError, match="no run of this program"):
        train([tmp_path / "out.parquet"], output, quick(start))


def test_a_model_that_is_there_is_not_replaced_unasked(photographs: Path, tmp_path: Path, start: str) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputExists, match="--overwrite"):
        train([photographs], tmp_path / "mine.safetensors", quick(start))
    assert (tmp_path / "mine.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("field", "value"),
    [("sizes", "own,4x4"), ("sizes", "big"), ("minutes", 0.0), ("rate", -1.0), ("loss", "l1"), ("codec", "jpeg")],
)
def test_options_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        TrainOptions(**{field: value})  # type: ignore[arg-type]


def test_a_model_pays_when_it_saves() -> None:
    assert Gain(5, 100.0, 90.0, 30.0).pays_from(1000) == 101
    assert Gain(5, 100.0, 100.0, 30.0).pays_from(1000) is None
    assert Gain(5, 100.0, 90.0, 30.0).pays_from(-1000) == 1


def test_large_held_out_pictures_are_measured_a_few_at_a_time() -> None:
    seen: list[int] = []

    class Counting(LatentCodec):
        def encode(self, images: Sequence[Pixels], qualities: Sequence[int]) -> list[bytes]:
            seen.append(len(images))
            return super().encode(images, qualities)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(savings, "SAVINGS_QUALITIES", (75,))
        patch.setattr(savings, "_BATCH", BatchLimit(32, 3 * 40 * 48))
        savings._curve(Counting(tiny_model()), list(pictures(7, 40, 48)))
    assert seen == [3, 3, 1]


def test_a_network_taken_from_a_model_is_that_model(start: str) -> None:
    before: Model = load_model(start)
    images = pictures(12, 40, 48, seed=7)
    network = latent_network(before)
    arrays = export_arrays(network, [images])
    after = model_from_bytes(serialise(arrays, {"name": "again", "architecture": network.architecture.to_dict()}))
    sizes = [sum(map(len, LatentCodec(model).encode(list(images), [60] * 12))) for model in (before, after)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
    item = [LatentItem(LatentCodec(after).encode([images[0]], [60])[0], 40, 48, False, 60)]
    assert LatentCodec(after).decode(item)[0].shape == (40, 48, 3)

    exact = tiny_exact_model()
    again = model_arrays(exact_network(exact))
    same = [np.array_equal(again[name], exact.arrays[name]) for name in again]
    assert np.mean(same) > 0.9
