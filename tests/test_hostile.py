"""Archives that somebody made to do harm: bounded time and memory, a clear answer, and no traceback."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rows import MODEL, face_rows, info_for, raw_row
from test_archive import directory_of_parts

import zippy_batch as zb
import zippy_batch.archives.writer
from zippy_batch.archives.info import MANIFEST_NAME, ArchiveInfo, model_name
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION, GROUP_BYTES, Row, problem_of
from zippy_batch.archives.writer import part_name, write_part
from zippy_batch.codecs.model_file import model_from_bytes
from zippy_batch.config import RestoreOptions, RunOptions, VerifyOptions
from zippy_batch.errors import ArchiveError
from zippy_batch.run.pipeline import Codecs, restore, stats, verify
from zippy_batch.run.report import Finding, VerifyReport

GOLDEN = Path(__file__).parent / "golden" / "v3.parquet"
HERE = RunOptions(workers=1)
KEEP_GOING = RestoreOptions(keep_going=True, device="cpu")


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    head = json.loads((directory / MANIFEST_NAME).read_text())
    del head["crc"]
    change(head)
    text = json.dumps(head)[:-1]
    (directory / MANIFEST_NAME).write_text(f'{text},"crc":{zlib.crc32((text + "}").encode())}}}')


def peak_bytes(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("target", ["part-00001.parquet", "/dev/zero", "nowhere"])
def test_a_part_that_is_a_link_to_no_file_is_damage_of_its_own(tmp_path: Path, target: str) -> None:
    directory = directory_of_parts(tmp_path, face_rows(3), face_rows(4, seed=1))
    (directory / part_name(1)).unlink()
    (directory / part_name(1)).symlink_to(target)
    report = verify(directory, run=HERE)
    assert (report.exit_code, {finding.shard for finding in report.damaged}) == (1, {1})


def test_a_manifest_that_claims_rows_nobody_has(tmp_path: Path) -> None:
    directory = directory_of_parts(tmp_path, face_rows(3), face_rows(4, seed=1))
    (directory / part_name(1)).unlink()

    def claim(head: dict[str, Any]) -> None:
        head["shards"][1] = 30_000_000

    change_manifest(directory, claim)
    with ArchiveReader.open(directory, allow_damage=True) as archive:
        assert archive.select("*") == {0: [0, 1, 2]}
    found: list[VerifyReport] = []
    assert peak_bytes(lambda: found.append(verify(directory, run=HERE))) < 100 << 20
    assert [str(finding) for finding in found[0].damaged] == [
        f"shard 1: (all of its rows): {directory / part_name(1)} is missing; bring it back, or restore the rest with "
        f"--keep-going (it should have 30000000 rows)"
    ]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("payload_bytes", [1e30, 1]),
        ("payload_bytes", [1 << 80, 1]),
        ("shards", [2_000_000_000, 4]),
        ("exact_bytes", [-1, 0]),
    ],
)
def test_a_manifest_of_impossible_numbers_is_refused(tmp_path: Path, member: str, value: list[Any]) -> None:
    directory = directory_of_parts(tmp_path, face_rows(3), face_rows(4, seed=1))
    change_manifest(directory, lambda head: head.update({member: value}))
    for run in (lambda: stats(directory), lambda: verify(directory, run=HERE)):
        with pytest.raises(ArchiveError, match=r"_manifest\.json"):
            run()


def test_many_missing_parts_are_told_in_few_words(tmp_path: Path) -> None:
    directory = directory_of_parts(tmp_path, face_rows(3))

    def claim(head: dict[str, Any]) -> None:
        count = 20_000
        for member in ("shards", "payload_bytes", "exact_bytes"):
            head[member] = head[member] * count
        head["parts"] = [{**head["parts"][0], "name": part_name(i)} for i in range(count)]

    change_manifest(directory, claim)
    with pytest.raises(ArchiveError, match=r"part-00001\.parquet is missing.*more problems") as error:
        ArchiveReader.open(directory)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "missing", "longer"])
def test_a_model_that_is_no_file_of_its_size_is_not_read(tmp_path: Path, kind: str) -> None:
    info = info_for(2, model_files={"latent": MODEL})
    model = directory_of_parts(tmp_path, face_rows(2), info=info) / model_name("latent")
    model.unlink()
    if kind == "pipe":
        os.mkfifo(model)
    elif kind == "link to a device":
        model.symlink_to("/dev/zero")
    elif kind == "longer":
        model.write_bytes(MODEL * 2)
    with pytest.raises(ArchiveError, match=r"the model .*_model-latent\.safetensors (is missing|has \d+ bytes)"):
        ArchiveReader.open(model.parent)


def test_a_model_may_lie_elsewhere_as_long_as_it_is_that_model(tmp_path: Path) -> None:
    """Archives of one model may share the file by links; its SHA-256 says that it is the one."""
    info = info_for(2, model_files={"latent": MODEL})
    model = directory_of_parts(tmp_path, face_rows(2), info=info) / model_name("latent")
    model.rename(tmp_path / "shared")
    model.symlink_to(tmp_path / "shared")
    with ArchiveReader.open(model.parent) as archive:
        assert archive.info.model_files["latent"] == MODEL
    (tmp_path / "shared").write_bytes(MODEL[::-1])
    with pytest.raises(ArchiveError, match=r"the model in .* is damaged: its SHA-256 is not"):
        ArchiveReader.open(model.parent)


def golden_rows() -> tuple[list[Row], ArchiveInfo]:
    with ArchiveReader.open(GOLDEN) as archive:
        rows = [row for shard in archive.shards() for row in archive.read_rows(shard) if isinstance(row, Row)]
        return [row for row in rows if row.codec == "latent"], archive.info


@pytest.mark.parametrize(
    "change",
    [{"mode": "L", "grey": False}, {"jpeg_tables": b"no tables"}, {"icc": bytes(17_000_000)}],
    ids=["grey by name", "tables", "profile"],
)
def test_what_verify_passes_restore_brings_back(tmp_path: Path, change: dict[str, Any]) -> None:
    rows, info = golden_rows()
    colour = next(row for row in rows if not row.grey)
    crafted = [replace(colour, path=b"a.jpg"), replace(colour, path=b"b.jpg", **change)]
    if any(problem_of(row) for row in crafted):
        pytest.fail("the row is refused before it is written; use another one")
    part = tmp_path / "part"
    write_part(part, crafted, replace(info, shards=(2,)))
    codecs = Codecs(find=lambda _: model_from_bytes(info.model_files["latent"]))
    report = verify(part, options=VerifyOptions(deep=True), run=HERE, codecs=codecs)
    restored = restore(part, tmp_path / "out", KEEP_GOING, HERE, codecs=codecs)
    assert [finding.row for finding in report.damaged] == [finding.row for finding in restored.total.damaged]
    assert (report.exit_code, restored.exit_code, restored.total.images) == (1, 1, 1)


@pytest.mark.parametrize(
    "change",
    [{"psnr": -1e38, "ssim": 0.5}, {"psnr": 1e38, "ssim": 1e38}, {"psnr": float("nan"), "ssim": float("inf")},
     {"width": -5, "height": 0}, {"source_bytes": 0}, {"source_bytes": -(1 << 60)}, {"quality": -3}],
    ids=str,
)  # fmt: skip
def test_stats_of_malformed_numbers_are_numbers(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zippy_batch.archives.writer, "problem_of", lambda row: None)
    write_part(tmp_path / "part", [replace(row, **change) for row in face_rows(3)], info_for(3))
    report = stats(tmp_path / "part")
    assert report.lines()
    json.dumps(report.to_dict())


# ---- rows that take more memory than is given to one ----

LITTLE = 10_000_000


def opened(archive: Path) -> list[Finding]:
    with zb.open(archive, "cpu", max_row_bytes=LITTLE) as files:
        assert files["a.bin"].bytes() == b"little"
        with pytest.raises(zb.DamagedRow) as error:
            files[files.paths[1]]
        return [Finding(files.paths[1], str(error.value).split("): ")[1])]


def bounded(way: str, archive: Path, tmp_path: Path, codecs: Codecs | None = None) -> Finding:
    """What is said of the second row by whatever reads rows, with a bound on what one may take."""
    if way == "restore":
        options = replace(KEEP_GOING, max_row_bytes=LITTLE)
        restoring = restore(archive, tmp_path / "back", options, HERE, codecs=codecs)
        assert (tmp_path / "back" / "a.bin").read_bytes() == b"little"
        found: Sequence[Finding] = restoring.total.damaged
    elif way == "open":
        found = opened(archive)
    else:
        checking = VerifyOptions(deep=way == "verify", sample=9 if way == "sample" else None, max_row_bytes=LITTLE)
        found = verify(archive, options=checking, run=HERE, codecs=codecs).damaged
    (one,) = found
    return one


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few kB of which one row is 140 MB."""
    part = tmp_path_factory.mktemp("zeros") / "part.parquet"
    rows = [raw_row(b"a.bin", b"little"), raw_row(b"zeros.bin", bytes(LITTLE + 2 * GROUP_BYTES))]
    write_part(part, rows, ArchiveInfo(FORMAT_VERSION, {}, {}, (2,)))
    assert part.stat().st_size < 50_000
    return part


@pytest.mark.parametrize("way", ["verify", "sample", "restore", "open"])
def test_a_row_that_would_take_all_memory_is_refused_before_it_does(way: str, zeros: Path, tmp_path: Path) -> None:
    found: list[Finding] = []
    assert peak_bytes(lambda: found.append(bounded(way, zeros, tmp_path))) < LITTLE
    assert found[0].path == "zeros.bin"
    assert "bytes of memory, which rows of at most 10000000 do not; raise max_row_bytes" in found[0].what


@pytest.mark.parametrize("way", ["verify", "sample", "restore", "open"])
def test_a_picture_that_would_take_all_memory_is_refused_before_it_is_decoded(way: str, tmp_path: Path) -> None:
    rows, info = golden_rows()
    large = replace(next(row for row in rows if not row.grey), path=b"b.jpg", width=4096, height=4096)
    part = tmp_path / "part.parquet"
    write_part(part, [raw_row(b"a.bin", b"little"), large], replace(info, shards=(2,)))
    codecs = Codecs(find=lambda _: model_from_bytes(info.model_files["latent"]))
    found = bounded(way, part, tmp_path, codecs)
    assert found.path == "b.jpg"
    assert found.what.startswith("its pixels have 50331648 bytes, and max_row_bytes is 10000000")
