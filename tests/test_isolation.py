"""A file that kills its workers is found and kept raw, and its neighbours' rows stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CODECS, EXACT_MODEL, MODEL, POISON, FakeCodec, FakeExactCodec, fake_codec, pixels
from numpy.typing import NDArray
from PIL import Image
from tiny import tiny_exact_model, tiny_model

from zippy_batch.archives.info import ArchiveInfo
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, Row
from zippy_batch.archives.writer import part_name
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import SourceError, WorkerError
from zippy_batch.images.pixels import Picture, Unsuitable, read_picture
from zippy_batch.run import pipeline
from zippy_batch.run.archive_shard import ArchiveJob, archive_shard
from zippy_batch.run.encode_verified import Coders, MakeCodec, compare, make_codec
from zippy_batch.run.plan import Shard
from zippy_batch.run.quarantine import MAX_DEATHS, JournalEntry, QuarantinedShard, read_journal
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.sources import Source
from zippy_batch.sources.directory import list_files

DEAD = 9
DECODING, CODING = "the worker crashed while decoding it", "the worker crashed while encoding it"


Images = Sequence[NDArray[np.uint8]]


def is_poisoned(image: NDArray[np.uint8]) -> bool:
    return bool(image.flat[0] == POISON)


@dataclass
class Deadly:
    """A codec that takes its process with it."""

    inner: Any
    dies_of: Callable[[Any], bool]

    def encode(self, images: Any, *qualities: Any) -> list[bytes]:
        if self.dies_of(images):
            os._exit(DEAD)
        return self.inner.encode(images, *qualities)

    def decode_checked(self, items: Any) -> Any:
        return self.inner.decode_checked(items)


def deadly_codec(model: Model, device: str) -> Any:
    return with_deadly_latent(fake_codec(model, device), model)


def deadly_tiny_codec(model: Model, device: str) -> Any:
    return with_deadly_latent(make_codec(model, device), model)


def with_deadly_latent(codec: Any, model: Model) -> Any:
    return Deadly(codec, lambda images: any(map(is_poisoned, images))) if model.codec == "latent" else codec


def crowded_codec(model: Model, device: str) -> Any:
    return Deadly(fake_codec(model, device), lambda images: len(images) > 2)


class Hopeless(FakeCodec):
    """Its payloads are never smaller than a file."""

    def encode(self, images: Images, qualities: Sequence[int]) -> list[bytes]:
        return [payload + bytes(1 << 16) for payload in super().encode(images, qualities)]


def hopeless_codec(model: Model, device: str) -> Any:
    return Hopeless() if model.codec == "latent" else FakeExactCodec()


def hopeless_and_deadly_codec(model: Model, device: str) -> Any:
    """The exact one dies of pictures that are 48 pixels high."""
    inner = hopeless_codec(model, device)
    return inner if model.codec == "latent" else Deadly(inner, lambda images: any(f.height == 48 for f, _ in images))


@dataclass(frozen=True)
class Unlucky:
    """Makes codecs that die five times, each time at another step; counts in a directory."""

    deaths: Path

    def __call__(self, model: Model, device: str) -> Any:
        self.deaths.mkdir(exist_ok=True)
        past = len(list(self.deaths.iterdir()))
        steps = count()

        def dies(images: Any) -> bool:
            if past == 5 or next(steps) != past % 4:
                return False
            (self.deaths / str(past)).touch()
            return True

        inner = fake_codec(model, device)
        return Deadly(inner, dies) if model.codec == "latent" else inner


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Six PNG files of one size, the third of them poisoned, and three JPEG files, the last two of them grey."""
    compare(pixels(0), pixels(1))  # compiled once, for all children
    directory = tmp_path / "faces"
    directory.mkdir()
    for i in range(6):
        Image.fromarray(pixels(i) if i != 2 else poisoned(pixels(i))).save(directory / f"{i}.png")
    Image.fromarray(pixels(6, 40, 40)).save(directory / "6.jpg")
    Image.fromarray(pixels(7, 40, 40)[..., 0]).save(directory / "7.jpg")
    Image.fromarray(pixels(8, 48, 40)[..., 0]).save(directory / "8.jpg")
    return directory


def poisoned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = image.copy()
    image.flat[0] = POISON
    return image


def make_job(
    source: Path, make: MakeCodec, options: ArchiveOptions | None = None, models: dict[str, Model] | None = None
) -> ArchiveJob:
    parts = source.with_name(f"parts-{len(list(source.parent.iterdir()))}")
    parts.mkdir()
    options = options or ArchiveOptions(device="cpu", batch_size=4)
    models = models or {"latent": MODEL, "exact": EXACT_MODEL}
    rows = len(list_files(source).files)
    info = ArchiveInfo(FORMAT_VERSION, {codec: model.id for codec, model in models.items()}, {}, (rows,), {})
    return ArchiveJob(Source("files", source), parts, options, models, make, info)


@dataclass
class Fate:
    rows: dict[bytes, Row]
    deaths: int

    @property
    def raw(self) -> dict[bytes, str | None]:
        return {path: row.raw_reason for path, row in self.rows.items() if row.codec == "raw"}


def work_off(job: ArchiveJob) -> Fate:
    """As the pool of actors does, with a forked child for a worker."""
    assert isinstance(job.source.root, Path)
    unit: Shard | QuarantinedShard = Shard(0, list_files(job.source.root).files[:])
    deaths = 0
    while True:
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                job.start(2)(unit, lambda done: None)
                os._exit(0)
            os._exit(3)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            with ArchiveReader.open(job.parts / part_name(0)) as opened:
                rows = [row for row in opened.read_rows(0) if isinstance(row, Row)]
            return Fate({row.path: row for row in rows}, deaths)
        assert status == DEAD
        deaths += 1
        unit = job.after_death(unit, deaths, "as the test wants it")


def others(fate: Fate, *without: bytes) -> dict[bytes, Row]:
    return {path: row for path, row in fate.rows.items() if path not in without}


def dying_of(*victims: Path) -> Callable[[bytes], Picture | Unsuitable]:
    """A decoder that takes its process with it when it meets one of these."""
    contents = {path.read_bytes() for path in victims}

    def read(data: bytes) -> Picture | Unsuitable:
        if data in contents:
            os._exit(DEAD)
        return read_picture(data)

    return read


def test_a_picture_that_kills_in_coding_is_kept_raw_and_its_neighbours_rows_stay(faces: Path) -> None:
    undisturbed = work_off(make_job(faces, CODECS.make))
    fate = work_off(make_job(faces, deadly_codec))
    assert (fate.raw, fate.deaths) == ({b"2.png": CODING}, 4)
    assert others(fate, b"2.png") == others(undisturbed, b"2.png")
    row = fate.rows[b"2.png"]
    assert (row.payload, row.source_format, row.width, row.height) == ((faces / "2.png").read_bytes(), "png", 24, 16)


class Recording(FakeCodec):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[list[tuple[int, ...]]] = []

    def encode(self, images: Images, qualities: Sequence[int]) -> list[bytes]:
        self.shapes.append([image.shape for image in images])
        return super().encode(images, qualities)


def shapes_of_batches(unit: Shard | QuarantinedShard, source: Path) -> list[list[tuple[int, ...]]]:
    """Of those with several pictures; one by itself is a try."""
    codec = Recording()
    options = ArchiveOptions(device="cpu", batch_size=4, exact="never")
    archive_shard(unit, Source("files", source), options, Coders(codec), OrderedThreadPool(1), lambda done: None)
    return [shapes for shapes in codec.shapes if len(shapes) > 1]


@pytest.mark.parametrize("doing", ["decoding", "coding"])
@pytest.mark.parametrize("place", range(9))
def test_a_culprit_keeps_its_place_in_its_batch(doing: str, place: int, faces: Path) -> None:
    shard = Shard(0, list_files(faces).files[:])
    careful = QuarantinedShard(shard, faces.with_name("journal"), poison={place: JournalEntry(doing, place)})
    assert shapes_of_batches(careful, faces) == shapes_of_batches(shard, faces)


def test_with_real_networks_too(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their floats depend on the shape of their batch."""
    options = ArchiveOptions(device="cpu", batch_size=4)
    models = {"latent": tiny_model(), "exact": tiny_exact_model()}
    undisturbed = work_off(make_job(faces, make_codec, options, models))
    monkeypatch.setattr("zippy_batch.run.archive_shard.read_picture", dying_of(faces / "3.png", faces / "7.jpg"))
    fate = work_off(make_job(faces, deadly_tiny_codec, options, models))
    poison = {b"2.png": CODING, b"3.png": DECODING, b"7.jpg": DECODING}
    assert fate.raw == {**undisturbed.raw, **poison}
    assert others(fate, *poison) == others(undisturbed, *poison)


@pytest.mark.parametrize("exact", ["auto", "always"])
def test_a_file_that_kills_in_the_exact_codec_is_kept_raw(exact: str, faces: Path) -> None:
    """Where the lossy codec fails on a JPEG, the exact one is tried."""
    options = ArchiveOptions(device="cpu", exact=exact, batch_size=4)
    undisturbed = work_off(make_job(faces, hopeless_codec, options))
    fate = work_off(make_job(faces, hopeless_and_deadly_codec, options))
    assert fate.raw == {**undisturbed.raw, b"8.jpg": CODING}
    assert others(fate, b"8.jpg") == others(undisturbed, b"8.jpg")


def test_a_file_without_a_readable_header_is_in_no_batch(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (faces / "1.png").write_bytes(b"no picture")
    undisturbed = work_off(make_job(faces, CODECS.make))
    monkeypatch.setattr("zippy_batch.run.archive_shard.read_picture", dying_of(faces / "1.png"))
    fate = work_off(make_job(faces, CODECS.make))
    assert fate.raw == {b"1.png": DECODING}
    assert others(fate, b"1.png") == others(undisturbed, b"1.png")


def test_deaths_at_different_files_condemn_none(faces: Path) -> None:
    """As of a machine that is going down."""
    undisturbed = work_off(make_job(faces, CODECS.make))
    fate = work_off(make_job(faces, Unlucky(faces.with_name("deaths"))))
    assert fate.rows == undisturbed.rows
    assert fate.deaths == 5


def test_a_batch_that_kills_although_none_of_its_files_does_ends_the_run(faces: Path) -> None:
    with pytest.raises(WorkerError, match=r"shard 0: the worker crashed 3 times \(as the test wants it\); what is"):
        work_off(make_job(faces, crowded_codec))


def test_more_culprits_than_a_few_end_the_run_and_the_last_is_named(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zippy_batch.run.archive_shard.read_picture", dying_of(*(faces / f"{i}.png" for i in range(4))))
    with pytest.raises(WorkerError, match=rf"the worker crashed {MAX_DEATHS + 1} times \(.*, at 3\.png\)"):
        work_off(make_job(faces, CODECS.make))


def test_strict_refuses_a_culprit(faces: Path, tmp_path: Path) -> None:
    job = make_job(faces, deadly_codec, ArchiveOptions(device="cpu", strict=True))
    unit = QuarantinedShard(
        Shard(0, list_files(faces).files[:]), tmp_path / "journal", poison={2: JournalEntry("encoding", 2)}
    )
    with pytest.raises(SourceError, match=r"2\.png would be kept raw \(the worker crashed while encoding it\)"):
        job.start(1)(unit, lambda done: None)


def test_a_journal_that_names_nothing_is_no_step(tmp_path: Path) -> None:
    for i, content in enumerate([b"", b" " * 64, b"coding", b"coding x", b"\xff\xfe 1"]):
        (tmp_path / str(i)).write_bytes(content)
        assert read_journal(tmp_path / str(i)) is None
    assert read_journal(tmp_path / "missing") is None


@pytest.mark.usefixtures("ray_session")
def test_a_run_on_ray_ends_with_the_culprit_raw_and_no_trace_of_the_search(
    faces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = faces.with_name("out")
    options = ArchiveOptions(device="cpu", batch_size=4, shard_size=5)
    report = pipeline.archive(faces, output, options, RunOptions(workers=2), codecs=replace(CODECS, make=deadly_codec))
    assert report.total.kept_raw == {CODING: 1}
    assert (
        "2.png: the worker crashed while encoding it, twice; it is kept as it is, and the others go on" in caplog.text
    )
    assert pipeline.verify(output, faces, run=RunOptions(workers=1), codecs=CODECS).exit_code == 0
    assert sorted(path.name for path in faces.parent.iterdir()) == ["faces", "out"]
    assert sorted(path.name for path in output.iterdir()) == ["_manifest.json", *map(part_name, range(2))]
