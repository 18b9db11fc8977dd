"""A line to a store that breaks or flips bits anywhere: a run is right or refused, and the next one finishes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import CODECS, files_of, make_faces
from s3 import S3, Proxy, content, upload
from s3 import s3 as s3
from s3 import s3_server as s3_server
from trials import check_refusal, run_trials

from zippy_batch.config import ArchiveOptions, RestoreOptions, RunOptions
from zippy_batch.errors import ZippyError
from zippy_batch.run.pipeline import archive, restore
from zippy_batch.stores import object_path
from zippy_batch.stores.object_path import delete, listed

IN_PROCESS = RunOptions(workers=1)
OPTIONS = ArchiveOptions(device="cpu", shard_size=5, batch_size=3)
BACK = RestoreOptions(device="cpu", sync=False)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces")


@pytest.fixture
def line(s3: S3) -> Iterator[Proxy]:
    made = Proxy(s3.host)
    yield made
    made.close()
    object_path._filesystem.cache_clear()


def emptied(s3: S3, key: str) -> None:
    for info in listed(s3.at(key), recursive=True):
        if info.is_file:
            delete(object_path.ObjectPath(s3.at(key).store, info.path))


def test_a_line_that_breaks_anywhere_loses_nothing(faces: Path, s3: S3, line: Proxy, tmp_path: Path) -> None:
    archive(faces, tmp_path / "whole", OPTIONS, IN_PROCESS, codecs=CODECS)
    archive(faces, s3.uri("measured/out", line.host), OPTIONS, IN_PROCESS, codecs=CODECS)
    usual = line.sent_bytes

    def trial(draw: random.Random) -> None:
        key = f"trial-{draw.random()}/out"
        line.allowed_bytes = draw.randrange(usual)
        try:
            archive(faces, s3.uri(key, line.host), OPTIONS, IN_PROCESS, codecs=CODECS)
        except ZippyError as error:
            check_refusal(error)
        else:
            assert content(s3.at(key)) == content(tmp_path / "whole")
        line.allowed_bytes = None
        archive(faces, s3.uri(key, line.host), OPTIONS, RunOptions(workers=1, overwrite=True), codecs=CODECS)
        assert content(s3.at(key)) == content(tmp_path / "whole")
        emptied(s3, key.partition("/")[0])

    run_trials(trial, 12)


def test_bits_that_flip_on_the_way_are_found_or_harmless(faces: Path, s3: S3, line: Proxy, tmp_path: Path) -> None:
    """In what is read of pictures, and of an archive."""
    upload(faces, s3.at("faces"))
    archive(faces, s3.uri("out"), OPTIONS, IN_PROCESS, codecs=CODECS)
    archive(s3.uri("faces"), tmp_path / "whole", OPTIONS, IN_PROCESS, codecs=CODECS)
    restore(s3.uri("out"), tmp_path / "back", BACK, IN_PROCESS, codecs=CODECS)
    expected = {"archive": content(tmp_path / "whole"), "restore": content(tmp_path / "back")}
    pieces = [*files_of(faces).values(), *content(s3.at("out")).values()]

    def trial(draw: random.Random) -> None:
        output, command = tmp_path / f"{draw.random()}", draw.choice(("archive", "restore"))
        data = draw.choice([piece for piece in pieces if len(piece) > 24])
        at = draw.randrange(len(data) - 12)
        line.flip, line.flips_left = data[at : at + 12], draw.choice((1, 2, 100))
        try:
            if command == "archive":
                archive(s3.uri("faces", line.host), output, OPTIONS, IN_PROCESS, codecs=CODECS)
            else:
                restore(s3.uri("out", line.host), output, BACK, IN_PROCESS, codecs=CODECS)
        except ZippyError as error:
            check_refusal(error)
        else:
            assert content(output) == expected[command], f"{command} with another bit after {data[at : at + 11]!r}"
        shutil.rmtree(output, ignore_errors=True)

    run_trials(trial, 40)
