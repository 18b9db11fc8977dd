"""Hashes of what the pictures of an archive look like: rows -> pixels -> `images.dhash`, by shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import Row
from zippy_batch.codecs.model_file import Model
from zippy_batch.config import RunOptions
from zippy_batch.errors import ArchiveError, DamagedRow
from zippy_batch.images.dhash import dhash
from zippy_batch.run.executor import run_units, settle_device
from zippy_batch.run.pipeline import Clock, Codecs
from zippy_batch.run.quarantine import retry
from zippy_batch.run.report import Done, Tick
from zippy_batch.run.row_decoder import RowDecoder, images_together
from zippy_batch.run.rows import Numbered, model_of, row_batches, sizes
from zippy_batch.run.thread_pool import OrderedThreadPool
from zippy_batch.stores.object_path import Place


@dataclass(frozen=True)
class HashUnit:
    index: int
    """Shard."""


@dataclass(frozen=True)
class ShardHashed:
    index: int
    done: Done
    hashes: Mapping[int, int]
    """Row -> hash, of rows that are pictures."""


@dataclass(frozen=True)
class HashJob:
    archive: Place
    models: Mapping[str, Model]
    device: str

    def start(self, threads: int) -> Callable[[HashUnit, Tick], ShardHashed]:
        opened, pool = ArchiveReader.open(self.archive), OrderedThreadPool(threads)
        decoder = RowDecoder(str(self.archive), self.models.__getitem__, self.device)

        def work(unit: HashUnit, tick: Tick) -> ShardHashed:
            numbered = list(enumerate(opened.sound_rows(unit.index)))
            done, found = Done(), dict[int, int]()
            batches = list(row_batches(numbered, images_together(self.device)))
            for batch, hashes in zip(batches, pool.in_order(lambda some: _hashes(decoder, some), batches), strict=True):
                found |= hashes
                step = Done(len(batch), *sizes(row for _, row in batch))
                done += step
                tick(step)
            return ShardHashed(unit.index, done, found)

        return work

    def after_death(self, unit: HashUnit, deaths: int, reason: str) -> HashUnit:
        return retry(unit, deaths, reason)


def _hashes(decoder: RowDecoder, batch: Sequence[Numbered]) -> dict[int, int]:
    if batch[0][1].codec != "raw":
        pictures = decoder.pixels([row for _, row in batch])
        return {place: dhash(picture) for (place, _), picture in zip(batch, pictures, strict=True)}
    found = {place: _hash_of_file(decoder, row) for place, row in batch}
    return {place: one for place, one in found.items() if one is not None}


def _hash_of_file(decoder: RowDecoder, row: Row) -> int | None:
    """None for a file that is no picture."""
    try:
        return dhash(decoder.rgb([row])[0])
    except DamagedRow:
        raise
    except ArchiveError:
        return None


def hash_archive(opened: ArchiveReader, run: RunOptions, clock: Clock, codecs: Codecs) -> dict[tuple[int, int], int]:
    """Shard and row -> hash, of all rows that are pictures, in order. Raises DamagedRow, and ModelError."""
    models = {codec: model_of(opened, codec, codecs.find) for codec in opened.info.models}
    device = settle_device("auto", run.address) if models else "cpu"
    stored_bytes = sum(opened.shard_bytes(shard) for shard in opened.shards())
    layout = clock.expect(Done(opened.row_count, stored_bytes), len(opened.shards()), device, run)
    job = HashJob(opened.path.absolute(), models, device)
    found: dict[tuple[int, int], int] = {}
    for result in run_units(job, map(HashUnit, opened.shards()), layout, clock.tick, clock.settle):
        found |= {(result.index, row): one for row, one in result.hashes.items()}
        clock.shard_done()
    return dict(sorted(found.items()))
