"""A flipped bit, or a manifest that says anything: what was wanted comes back right, or is named as damaged."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import CODECS, files_of, pixels
from PIL import Image
from trials import bounded, check_refusal, run_trials

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ZippyError
from zippy_batch.run.pipeline import archive, restore, stats, verify
from zippy_batch.run.report import RestoreReport

IN_PROCESS = RunOptions(workers=1)
ALL = RestoreOptions(device="cpu", sync=False)
CHOICES = (
    replace(ALL, select=("id_0/*",)),
    replace(ALL, select=("id_[12]/0*", "raw/*")),
    replace(ALL, where="codec == 'raw'"),
    replace(ALL, where="codec != 'raw'"),
    replace(ALL, where="width > 10"),
    replace(ALL, where="psnr >= 20"),
    replace(ALL, select=("id_*/*",), where="height < 10"),
)
CPU_S = 20.0
"""For a trial, which takes a fraction of a second."""


@dataclass(frozen=True)
class Made:
    """An archive, and what is restored of it while it is whole, by option."""

    path: Path
    restored: dict[RestoreOptions, dict[bytes, bytes]]

    def part(self, draw: random.Random) -> Path:
        return self.path if self.path.is_file() else draw.choice(sorted(self.path.glob("*.parquet")))

    def damaged(self, part: Path, bit: int, folder: Path) -> Path:
        """A copy with one bit of a part flipped."""
        copy = folder / self.path.name
        if self.path.is_dir():
            shutil.copytree(self.path, copy)
        else:
            shutil.copy(self.path, copy)
        target = copy / part.name if copy.is_dir() else copy
        data = bytearray(target.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        target.write_bytes(data)
        return copy


@pytest.fixture(scope="module", params=["out.parquet", "out"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    faces = root / "faces"
    for i in range(90):
        path = faces / f"id_{i % 3}" / f"{i:02}.{'jpg' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i, 8 + i % 4, 8 + i % 5)).save(path)
    (faces / "raw").mkdir()
    for i in range(6):
        (faces / "raw" / f"{i}.txt").write_bytes(b"no picture" * (i + 1))
    output = root / request.param
    archive(faces, output, ArchiveOptions(device="cpu", shard_size=50, batch_size=16), IN_PROCESS, codecs=CODECS)
    restored = {}
    for i, options in enumerate((ALL, *CHOICES)):
        restore(output, root / f"back-{i}", options, IN_PROCESS, codecs=CODECS)
        restored[options] = files_of(root / f"back-{i}")
        assert restored[options]
    return Made(output, restored)


def any_bit(part: Path, draw: random.Random) -> int:
    """Of the columns that selections and names come from every second time, else anywhere."""
    if draw.random() < 0.5:
        return draw.randrange(8 * part.stat().st_size)
    return bit_of_column(part, draw, ("path", "codec", "width", "psnr", "checksum"))


def bit_of_column(part: Path, draw: random.Random, names: tuple[str, ...]) -> int:
    metadata = pq.ParquetFile(part).metadata
    chunks = []
    for i in range(metadata.num_row_groups):
        for j in range(metadata.num_columns):
            column = metadata.row_group(i).column(j)
            if column.path_in_schema in names:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                chunks.append((start, start + column.total_compressed_size))
    start, stop = draw.choice(chunks)
    return draw.randrange(8 * start, 8 * stop)


def tried(path: Path, folder: Path, options: RestoreOptions) -> RestoreReport | None:
    """None where it was refused, in words."""
    try:
        with bounded(CPU_S):
            return restore(path, folder, options, IN_PROCESS, codecs=CODECS)
    except ZippyError as error:
        check_refusal(error)
        return None


def test_a_selection_passes_over_no_row_in_silence(made: Made, tmp_path: Path) -> None:
    def trial(draw: random.Random) -> None:
        folder = tmp_path / f"{draw.random()}"
        folder.mkdir()
        part, options = made.part(draw), draw.choice(CHOICES)
        path = made.damaged(part, any_bit(part, draw), folder)
        report = tried(path, folder / "back", options)
        if report is not None:
            assert report.exit_code == 0
            assert files_of(folder / "back") == made.restored[options]
        shutil.rmtree(folder)

    run_trials(trial, 80)


def test_keep_going_brings_back_what_is_whole_and_names_the_rest(made: Made, tmp_path: Path) -> None:
    def trial(draw: random.Random) -> None:
        folder = tmp_path / f"{draw.random()}"
        folder.mkdir()
        part, options = made.part(draw), draw.choice((ALL, *CHOICES))
        path = made.damaged(part, any_bit(part, draw), folder)
        report = tried(path, folder / "back", replace(options, keep_going=True))
        if report is not None:
            expected, found = made.restored[options], files_of(folder / "back")
            missing = expected.keys() - found.keys()
            assert all(found[name] == expected[name] for name in expected.keys() & found.keys())
            assert report.exit_code == (1 if report.total.damaged else 0)
            assert not missing or report.total.damaged, sorted(missing)
        shutil.rmtree(folder)

    run_trials(trial, 80)


def test_a_bit_of_any_column_takes_no_file_with_it(made: Made, tmp_path: Path) -> None:
    def trial(draw: random.Random) -> None:
        folder = tmp_path / f"{draw.random()}"
        folder.mkdir()
        part = made.part(draw)
        name = draw.choice(pq.ParquetFile(part).schema_arrow.names)
        path = made.damaged(part, bit_of_column(part, draw, (name,)), folder)
        report = tried(path, folder / "back", replace(ALL, keep_going=True))
        assert report is not None, f"a bit of the column {name} loses all"
        contents = Counter(made.restored[ALL].values()) - Counter(files_of(folder / "back").values())
        assert not contents, f"a bit of the column {name} loses {contents.total()} files"
        shutil.rmtree(folder)

    run_trials(trial, 80)


ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2_000_000_000, 10**30, 1e30, 0.5, "", "x" * 5000, "../x", "/dev/zero", "0" * 64, [], {},
    [[]], [None], {"a": {"b": []}}, [10**12], ["part-00000.parquet"] * 3,
)  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """The same JSON with one value replaced, left out or doubled, at any depth."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        if draw.random() < 0.2:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        if draw.random() < 0.3:
            return [*value[:at], *value[at + 1 :]] if draw.random() < 0.5 else [*value, value[at]]
        return [*value[:at], mutated(value[at], draw), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 1 << 31, 1 << 62))
    return draw.choice(ODD_VALUES)


def sealed(value: Any) -> str:
    """A manifest whose checksum is right, whatever else is wrong with it."""
    if not isinstance(value, dict):
        return json.dumps(value)
    text = json.dumps({name: one for name, one in value.items() if name != "crc"})
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}'


@pytest.mark.parametrize("made", ["out"], indirect=True)
def test_a_manifest_that_says_anything_is_refused_or_changes_nothing(made: Made, tmp_path: Path) -> None:
    def trial(draw: random.Random) -> None:
        folder = tmp_path / f"{draw.random()}"
        copy = folder / "out"
        shutil.copytree(made.path, copy)
        (manifest,) = copy.glob("*manifest.json")
        if draw.random() < 0.2:
            data = bytearray(manifest.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            manifest.write_bytes(data)
        else:
            value = json.loads(manifest.read_text())
            for _ in range(draw.choice((1, 1, 2, 4))):
                value = mutated(value, draw)
            manifest.write_text(sealed(value) if draw.random() < 0.7 else json.dumps(value))
        for command in (stats, verify):
            try:
                with bounded(CPU_S):
                    command(copy) if command is stats else verify(copy, run=IN_PROCESS, codecs=CODECS)
            except ZippyError as error:
                check_refusal(error)
        if tried(copy, folder / "back", ALL) is not None:
            assert files_of(folder / "back") == made.restored[ALL]
        shutil.rmtree(folder)

    run_trials(trial, 160)
