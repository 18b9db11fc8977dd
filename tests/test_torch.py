"""Archives as data sets of PyTorch: every picture once, the same order for any number of workers, and mid-epoch."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from s3 import S3, upload
from s3 import s3 as s3
from s3 import s3_server as s3_server
from synthetic_faces import draw_faces
from torch.utils.data import DataLoader

import zippy_batch as zb
from zippy_batch.adapters import torch as adapter
from zippy_batch.adapters.epoch_order import WINDOW_BYTES, EpochOrder, Places, Turn
from zippy_batch.dataset import ArchivedFiles

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 drawn faces of two classes, a text file and a picture with an alpha channel, in parts of 9 rows."""
    base = tmp_path_factory.mktemp("torch")
    draw_faces(base / "faces" / "a", 30)
    draw_faces(base / "faces" / "b", 20, seed=1)
    (base / "faces" / "notes.txt").write_text("no picture")
    Image.new("RGBA", (42, 42), (200, 10, 20, 128)).save(base / "faces" / "b" / "alpha.png")
    zb.archive(base / "faces", base / "parts", labels="folders", workers=1, shard_size=9, device="cpu")
    return base / "parts"


@pytest.fixture(params=["v3.parquet", "v3"])
def golden(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


def numbers(batches: Any) -> list[int]:
    """Labels of all batches, in order."""
    return [int(label) for _, labels in batches for label in labels]


class Checksum:
    """A picture as one number, so that orders can be compared; pickles."""

    def __call__(self, picture: torch.Tensor) -> int:
        return int(picture.to(torch.int64).flatten().dot(torch.arange(picture.numel()) % 1009))


def order_of(loader: Any) -> list[int]:
    return [int(picture) for pictures, _ in loader for picture in pictures]


def test_a_data_set_gives_the_pixels_of_the_archive(golden: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = zb.torch.ArchiveDataset(golden, where="path != 'tall.png'")
    with zb.open(golden, device="cpu") as archive:
        assert len(data) == 17
        assert "2 of 19 files are no pictures and are left out, the first is empty" in caplog.text
        for path, (picture, label) in zip(data.paths, data.__getitems__(range(17)), strict=True):
            assert label == -1
            expected = archive[[archive[path].number]].rgb()[0]
            assert picture.dtype == torch.uint8
            assert picture.shape == (3, *expected.shape[:2])
            assert (picture.numpy().transpose(1, 2, 0) == expected).all()
    assert (data[-1][0] == data[16][0]).all()
    with pytest.raises(IndexError, match="no picture 17"):
        data[17]


def test_labels_are_numbers_text_or_left_out(labelled: Path) -> None:
    data = zb.torch.ArchiveDataset(labelled)
    assert (len(data), data.classes, data.class_to_idx) == (51, ["a", "b"], {"a": 0, "b": 1})
    assert Counter(data.targets) == {0: 30, 1: 21}
    assert [label for _, label in data.__getitems__([0, 50])] == [0, 1]
    only_b = zb.torch.ArchiveDataset(labelled, where="label == 'b'", target_transform=str)
    assert only_b[0][1] == "1"
    assert zb.torch.ArchiveDataset(labelled, labels="text", where="label == 'b'")[0][1] == "b"
    assert zb.torch.ArchiveDataset(labelled, labels=None)[0].shape == (3, 42, 42)
    with pytest.raises(zb.UsageError, match="labels are"):
        zb.torch.ArchiveDataset(labelled, labels="words")  # type: ignore[arg-type]
    with pytest.raises(zb.UsageError, match="image is"):
        zb.torch.ArchiveDataset(labelled, image="numpy")  # type: ignore[arg-type]


def test_pictures_are_images_of_pillow_if_asked_for(labelled: Path) -> None:
    data = zb.torch.ArchiveDataset(labelled, image="pil", where="codec == 'raw'", transform=lambda picture: picture)
    assert len(data) == 1
    assert data[0][0].getpixel((3, 3)) == (200, 10, 20)
    assert data[0][0].mode == "RGB"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_what_one_process_gives(labelled: Path, method: str) -> None:
    data = zb.torch.ArchiveDataset(labelled, transform=Checksum())
    alone = order_of(DataLoader(data, batch_size=16))
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context=method)
    assert order_of(loader) == alone
    assert len(pickle.dumps(data)) < 5000


def test_a_cache_decodes_each_picture_once(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = order_of(DataLoader(zb.torch.ArchiveDataset(labelled, transform=Checksum()), batch_size=8))
    data = zb.torch.ArchiveDataset(labelled, transform=Checksum(), cache=tmp_path)
    loader = DataLoader(data, batch_size=8, num_workers=2)
    assert order_of(loader) == plain

    def decode_nothing(*arguments: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(ArchivedFiles, "rgb", decode_nothing)
    assert order_of(loader) == order_of(DataLoader(data, batch_size=7)) == plain
    copy = pickle.loads(pickle.dumps(data))
    assert copy.__getitems__([-1, 3, 3]) == [(plain[50], 1), (plain[3], 0), (plain[3], 0)]
    assert len([*tmp_path.iterdir()]) == 1
    del data, loader, copy
    assert not [*tmp_path.iterdir()]


def test_a_cache_keeps_what_is_of_one_size(golden: Path, tmp_path: Path) -> None:
    data = zb.torch.ArchiveDataset(golden, labels=None, cache=tmp_path)
    plain = zb.torch.ArchiveDataset(golden, labels=None).__getitems__(range(17))
    for _ in range(2):
        for one, same in zip(data.__getitems__(range(17)), plain, strict=True):
            assert (one == same).all()
    with pytest.raises(OSError, match="No such file"):
        zb.torch.ArchiveDataset(golden, cache=tmp_path / "nowhere")


def stream(path: Path | str, **options: Any) -> adapter.StreamingArchive:
    return zb.torch.StreamingArchive(path, **{"transform": Checksum(), "batch_size": 4, **options})


def taken(data: adapter.StreamingArchive, workers: int = 0) -> list[int]:
    return order_of(DataLoader(data, batch_size=data.batch_size, num_workers=workers))


def test_a_stream_gives_every_picture_once_in_an_order_of_its_seed_and_epoch(labelled: Path) -> None:
    plain = taken(stream(labelled))
    assert plain == order_of(DataLoader(zb.torch.ArchiveDataset(labelled, transform=Checksum())))
    data = stream(labelled, shuffle=True, seed=3)
    first = taken(data)
    assert sorted(first) == sorted(plain)
    assert first != plain
    assert first == taken(data) == taken(stream(labelled, shuffle=True, seed=3, batch_size=7))
    data.set_epoch(1)
    assert sorted(taken(data)) == sorted(plain)
    assert taken(data) != first
    assert taken(stream(labelled, shuffle=True, seed=4)) != first


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_order_is_the_same_with_any_number_of_workers(labelled: Path, workers: int) -> None:
    data = stream(labelled, shuffle=True, buffer=20)
    assert taken(data, workers) == taken(data)


def test_workers_that_live_on_see_the_next_epoch(labelled: Path) -> None:
    data = stream(labelled, shuffle=True, buffer=20, where="label == 'a'")
    expected = []
    for epoch in range(2):
        data.set_epoch(epoch)
        expected.append(taken(data))
    loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        assert order_of(loader) == expected[epoch]


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_in_equal_parts(labelled: Path, drop_last: bool) -> None:
    whole = taken(stream(labelled))
    parts = [stream(labelled, shuffle=True, rank=rank, world_size=4, drop_last=drop_last) for rank in range(4)]
    assert {len(part) for part in parts} == {12 if drop_last else 13}
    found = [taken(part) for part in parts]
    assert {len(one) for one in found} == {12 if drop_last else 13}
    every = [picture for one in found for picture in one]
    assert len(set(every)) == (48 if drop_last else 51)
    assert set(every) <= set(whole)


def test_ranks_are_those_of_the_environment(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (stream(labelled).rank, stream(labelled).world_size) == (1, 3)
    assert stream(labelled, rank=0, world_size=1).world_size == 1
    with pytest.raises(zb.UsageError, match="no rank 3 of 3"):
        stream(labelled, rank=3, world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_was_left(labelled: Path, workers: int) -> None:
    whole = taken(stream(labelled, shuffle=True, buffer=20))
    data = stream(labelled, shuffle=True, buffer=20)
    loader = iter(DataLoader(data, batch_size=4, num_workers=workers))
    for _ in range(5):
        next(loader)
    state = json.loads(json.dumps(data.state_dict(20 if workers else None)))
    again = stream(labelled, shuffle=True, buffer=20)
    again.load_state_dict(state)
    again.set_epoch(0)
    assert taken(again, 3) == whole[20:]
    again.load_state_dict(state)
    assert taken(again) == whole[20:]
    assert taken(again) == whole, "only the epoch that was left goes on in its middle"
    again.load_state_dict(state)
    again.set_epoch(1)
    assert len(taken(again)) == 51


class Worker:
    """What a loader tells the code that runs in its workers."""

    def __init__(self, id: int, num_workers: int) -> None:
        self.id, self.num_workers = id, num_workers


def in_worker(monkeypatch: pytest.MonkeyPatch, id: int, of: int) -> None:
    monkeypatch.setattr(adapter, "get_worker_info", lambda: Worker(id, of))


def test_each_worker_can_save_and_go_on_by_itself(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchdata's StatefulDataLoader does it."""
    data, rest = stream(labelled), dict[int, list[int]]()
    for id in range(2):
        in_worker(monkeypatch, id, 2)
        items = iter(data)
        for _ in range(4 if id else 8):
            next(items)
        state = data.state_dict()
        rest[id] = [picture for picture, _ in items]
        data.load_state_dict(state)
        assert [picture for picture, _ in data] == rest[id]
    in_worker(monkeypatch, 0, 3)
    data.load_state_dict(state)
    with pytest.raises(zb.UsageError, match="one of 2 workers: go on with as many, not 3"):
        next(iter(data))


def test_a_state_of_another_stream_is_refused(labelled: Path) -> None:
    state = stream(labelled, seed=1, shuffle=True).state_dict()
    with pytest.raises(zb.UsageError, match="its seed is 1 instead of 2"):
        stream(labelled, seed=2, shuffle=True).load_state_dict(state)
    with pytest.raises(zb.UsageError, match="its pictures is None"):
        stream(labelled).load_state_dict({})
    for wrong in ({"batch_size": 0}, {"buffer": 0}):
        with pytest.raises(zb.UsageError, match="is 1 or more"):
            stream(labelled, **wrong)


def test_workers_do_not_share_a_gpu(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zb.open(labelled, device="cuda") as archive:
        data = zb.torch.ArchiveDataset(archive)
        in_worker(monkeypatch, 0, 1)
        with pytest.raises(zb.UsageError, match="cannot share a GPU"):
            data[0]
    with zb.open(labelled) as archive:
        assert zb.torch.ArchiveDataset(archive)[0][1] == 0


def test_damage_is_told_when_its_turn_comes(labelled: Path, tmp_path: Path) -> None:
    from test_archive import overwritten

    zb.archive(labelled.parent / "faces" / "a", tmp_path / "a.parquet", workers=1, device="cpu")
    with zb.open(tmp_path / "a.parquet") as archive:
        payload = archive[7].row.payload
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(overwritten(whole, whole.index(payload)))
    data = zb.torch.ArchiveDataset(tmp_path / "a.parquet")
    assert data[6][1] == -1
    with pytest.raises(zb.DamagedRow, match="row 7"):
        data[7]


def test_an_archive_in_a_store_is_streamed(labelled: Path, s3: S3) -> None:
    upload(labelled, s3.at("parts"))
    here, there = stream(labelled, shuffle=True), stream(s3.uri("parts"), shuffle=True)
    assert taken(there) == taken(here)
    data = zb.torch.ArchiveDataset(s3.uri("parts"))
    assert (data[7][0] == zb.torch.ArchiveDataset(labelled)[7][0]).all()


def test_the_benchmark_of_loaders_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from loader import main

    main(["--images", "70", "--larger", "0", "--workers", "0", "--only", "archive, lossy, stream;folder of JPEGs"])
    table = capsys.readouterr().out
    assert "| archive, lossy, stream |" in table
    assert "| folder of JPEGs |" in table


# ---- the order alone ----


def orders(world: int, **options: Any) -> Iterator[EpochOrder]:
    groups = np.array([[0, 1 << 20], [4096, 1 << 20], [8192, 1 << 29], [8292, 100]], np.int64)
    known: dict[str, Any] = {"shuffle": True, "seed": 0, "buffer": 5000, "drop_last": False, **options}
    for rank in range(world):
        yield EpochOrder(groups, 8300, ranks=(rank, world), **known)


def places(windows: Iterator[Places]) -> list[int]:
    return [int(place) for window in windows for place in window]


@pytest.mark.parametrize("world", [1, 2, 3, 7, 64])
def test_ranks_cover_all_places_and_read_few_groups(world: int) -> None:
    found = [places(order.windows(0)) for order in orders(world)]
    assert {len(one) for one in found} == {-(-8300 // world)}
    assert {place for one in found for place in one} == set(range(8300))
    for order in orders(world):
        for window in order.windows(0):
            assert len(window) <= 5000
            large = (window >= 8192) & (window < 8292)
            assert large.all() or large.sum() * (1 << 29) // 100 <= WINDOW_BYTES


def test_every_worker_has_work_where_files_are_few() -> None:
    (order,) = orders(1)
    for worker in range(8):
        turns = [mine for mine, _ in order.turns(0, Turn(worker, 8), 64)]
        assert 8300 // 8 - 64 <= sum(map(len, turns)) <= 8300 // 8 + 64


def test_more_ranks_than_places() -> None:
    groups = np.array([[0, 10]], np.int64)
    found = [
        places(EpochOrder(groups, 2, True, 0, 10, (rank, 5), drop_last).windows(0))
        for drop_last in (False, True)
        for rank in range(5)
    ]
    assert [len(one) for one in found] == [1] * 5 + [0] * 5
    empty = EpochOrder(np.zeros((0, 2), np.int64), 0, True, 0, 10, (0, 1), False)
    assert (empty.length, list(empty.windows(0))) == (0, [])
