"""The specification is enough to read exact rows: a decoder written from it rebuilds the files that the program stored.

Files come from Pillow, and, where Pillow writes none of the kind, from the decoder's own writer.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import spec_exact_decoder as spec
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load
from spec_decoder import Ints, Lane
from tiny import pictures, tiny_exact_model

from zippy_batch.archives.info import Damage
from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.codecs.model_file import serialise
from zippy_batch.config import ArchiveOptions, RunOptions
from zippy_batch.errors import ModelError
from zippy_batch.run.pipeline import archive

BUILT_IN = Path(__file__).parents[1] / "zippy_batch" / "codecs" / "models" / "exact.safetensors"
SIZES = [(24, 40), (17, 35), (42, 50)]
FORMS = ["4:2:0", "4:4:4", "4:2:2", "L"]


class Stored(NamedTuple):
    payload: bytes
    header: bytes
    source: bytes
    model: bytes


def architecture(model: bytes) -> dict[str, Any]:
    metadata = json.loads(model[8 : 8 + int.from_bytes(model[:8], "little")])["__metadata__"]
    return json.loads(metadata["zippy_batch"])["architecture"]


def store(directory: Path, sources: Mapping[str, bytes], model: bytes) -> dict[str, Stored]:
    """Archives files, and gives what the archive holds of those that are not smaller as they are."""
    (directory / "sources").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(model)
    for name, data in sources.items():
        (directory / "sources" / name).write_bytes(data)
    options = ArchiveOptions(exact="always", exact_model=str(directory / "model.safetensors"), device="cpu")
    archive(directory / "sources", directory / "archive.parquet", options, RunOptions(workers=1))
    found = {}
    with ArchiveReader.open(directory / "archive.parquet") as opened:
        for shard in opened.shards():
            for row in opened.read_rows(shard):
                assert not isinstance(row, Damage)
                if row.codec == "raw":
                    assert row.raw_reason == "smaller as it is"
                    continue
                assert row.codec == "exact"
                assert row.payload is not None
                assert row.jpeg_header is not None
                name = os.fsdecode(row.path)
                found[name] = Stored(row.payload, row.jpeg_header, sources[name], model)
    return found


def decode(stored: Stored) -> list[Ints]:
    arrays = load(stored.model)
    return spec.decode_coefficients(stored.payload, stored.header, arrays, architecture(stored.model))


def check(stored: Stored) -> list[Ints]:
    coefficients = decode(stored)
    assert spec.rebuild_file(stored.header, coefficients) == stored.source
    return coefficients


def save(path: Path, image: NDArray[np.uint8], form: str, **options: Any) -> None:
    if form == "L":
        Image.fromarray(image).convert("L").save(path, **options)
    else:
        Image.fromarray(image).save(path, subsampling=form, **options)


# ---- files from Pillow ----


@pytest.fixture(scope="module")
def from_pillow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    directory = tmp_path_factory.mktemp("pillow")
    sources: dict[str, bytes] = {}
    for form in FORMS:
        for quality in (30, 75, 95):
            for optimize in (False, True):
                for restart in (0, 2):
                    height, width = SIZES[len(sources) % 3]
                    path = directory / f"{form.replace(':', '')}-{quality}-{optimize:d}-{restart}.jpg"
                    options = {"quality": quality, "optimize": optimize, "restart_marker_blocks": restart}
                    save(path, pictures(1, height, width, len(sources))[0], form, **options)
                    sources[path.name] = path.read_bytes()
    stored = store(directory / "tiny", sources, tiny_exact_model().data)
    # where Huffman codes are better than an untrained model
    others = {name: data for name, data in sources.items() if name not in stored}
    assert len(others) < len(stored)
    return stored | store(directory / "built-in", others, BUILT_IN.read_bytes())


@pytest.mark.parametrize("restart", [0, 2])
@pytest.mark.parametrize("optimize", [False, True], ids=["standard", "optimised"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("form", FORMS)
def test_files_come_back(from_pillow: dict[str, Stored], form: str, quality: int, optimize: bool, restart: int) -> None:
    check(from_pillow[f"{form.replace(':', '')}-{quality}-{optimize:d}-{restart}.jpg"])


@pytest.mark.parametrize("form", ["4:2:0", "L"])
def test_files_come_back_from_the_built_in_model(tmp_path: Path, form: str) -> None:
    save(tmp_path / "a.jpg", pictures(1, 16, 24)[0], form, quality=75)
    check(store(tmp_path, {"a.jpg": (tmp_path / "a.jpg").read_bytes()}, BUILT_IN.read_bytes())["a.jpg"])


def test_progressive_files_and_four_components(tmp_path: Path) -> None:
    sources: dict[str, bytes] = {}
    for mode in ("RGB", "L", "CMYK"):
        for restart in (0, 3):
            for progressive in (True, False) if mode == "CMYK" else (True,):
                stream = io.BytesIO()
                picture = Image.fromarray(pictures(1, 37, 50, len(sources))[0]).convert(mode)
                options: dict[str, Any] = {"quality": 90, "restart_marker_blocks": restart, "progressive": progressive}
                picture.save(stream, "JPEG", **options)
                sources[f"{mode}-{restart}-{progressive:d}.jpg"] = stream.getvalue()
    stored = store(tmp_path / "tiny", sources, tiny_exact_model().data)
    others = {name: data for name, data in sources.items() if name not in stored}
    stored |= store(tmp_path / "built-in", others, BUILT_IN.read_bytes()) if others else {}
    assert stored.keys() == sources.keys()
    for row in stored.values():
        check(row)


def test_the_check_finds_damage(from_pillow: dict[str, Stored]) -> None:
    stored = from_pillow["420-75-0-0.jpg"]
    payload = stored.payload
    broken = [payload + b"\0", b"\0" + payload, payload[:-1], b""]
    for at in (0, len(payload) // 2, len(payload) - 1):
        flipped = bytearray(payload)
        flipped[at] ^= 16
        broken.append(bytes(flipped))
    for data in broken:
        with pytest.raises(ValueError, match=r"the payload|a zero byte"):
            decode(stored._replace(payload=data))


# ---- files that Pillow does not write ----

O = spec.OPTIMISED  # noqa: E741
AC = spec.AC
EOI = b"\xff\xd9"
ONES, OTHERS = [1] * 64, [2, 3, 4, 5] * 16
GREY = [(1, 0x11, 0)]
PARTS = [(1, 0x00), (2, 0x11), (3, 0x11)]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([255, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def quantisation(name: int, steps: Sequence[int]) -> bytes:
    size = 1 if max(steps) < 256 else 2
    return segment(0xDB, bytes([16 * size - 16 + name]) + b"".join(step.to_bytes(size, "big") for step in steps))


def restarts(mcus: int) -> bytes:
    return segment(0xDD, mcus.to_bytes(2, "big"))


def scan(parts: Sequence[tuple[int, int]]) -> bytes:
    return segment(0xDA, bytes([len(parts), *(v for part in parts for v in part), 0, 63, 0]))


def start(height: int, width: int, components: Sequence[tuple[int, int, int]], *steps: Sequence[int]) -> bytes:
    """A file up to its frame header."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    frame = bytes([8, *size, len(components), *(v for component in components for v in component)])
    tables = [quantisation(name, values) for name, values in enumerate(steps)]
    return b"\xff\xd8" + b"".join(tables) + segment(0xC0 if max(map(max, steps)) < 256 else 0xC1, frame)


def number(value: int) -> bytes:
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def recipe(*scans: tuple[int, Sequence[tuple[int, Sequence[int]]], bytes], whole: int = 0, tail: bytes = EOI) -> bytes:
    """Of scans: padding (form), what is left out (position and tables), run."""
    out = bytes([1, whole, len(scans)])
    for padding, left_out, run in scans:
        out += bytes([padding]) + number(len(left_out))
        for at, tables in left_out:
            out += number(at) + bytes([len(tables), *tables])
        out += number(len(run)) + run
    return out + tail


def random_coefficients(header: bytes, seed: int = 0) -> list[Ints]:
    """Such as the tables of K.3.3 need many bits for: rows would be raw otherwise."""
    found = spec.read_recipe(header)
    state = spec.State()
    for number, part in enumerate(found.scans):
        state.read(part.run, found.scans[number + 1].run if number + 1 < len(found.scans) else found.tail)
    assert state.frame is not None
    rng = np.random.default_rng(seed)
    arrays = []
    for k in range(len(state.frame.components)):
        rows, columns = state.frame.blocks(k, found.whole)
        array = np.clip(np.rint(rng.laplace(0, 60, (rows, columns, 64))), -1023, 1023).astype(np.int64)
        array[rng.random(array.shape) < 0.5] = 0
        ends = np.where(rng.random((rows, columns)) < 0.1, 63, rng.integers(0, 64, (rows, columns)))
        array[np.arange(64) > ends[..., None]] = 0
        array[..., 0] = rng.integers(-900, 900, (rows, columns))
        arrays.append(array)
    return arrays


SHAPES: dict[str, dict[str, Any]] = {
    "stages": {
        "luma": {"groups": [3, 4, 20, 37], "stages": [2, 3, 2, 1], "end_stages": 3, "state": 20, "hidden": [12]},
        "chroma": {"groups": [1, 7, 56], "stages": [3, 1, 1], "end_stages": 2, "state": 16, "hidden": [10, 8, 9]},
    },
    "extremes": {
        "luma": {"groups": [64], "stages": [1], "end_stages": 1, "state": 1, "hidden": [1]},
        "chroma": {"groups": [1] * 64, "stages": [3] * 63 + [1], "end_stages": 3, "state": 5, "hidden": [4] * 8},
    },
    "edges": {
        "luma": {"groups": [14, 2, 48], "stages": [2, 2, 1], "end_stages": 2, "state": 9, "hidden": [7]},
        "chroma": {"groups": [15, 1, 1, 47], "stages": [3, 2, 1, 1], "end_stages": 1, "state": 9, "hidden": [7, 3]},
    },
}


def random_arrays(shape: Mapping[str, Any], scale: int = 740, seed: int = 0) -> dict[str, NDArray]:
    """A model of random weights, with distributions about as wide as random coefficients for steps of 2^(scale/128) /
    55."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray] = {}

    def put(name: str, values: NDArray, kind: str) -> None:
        arrays[name] = values.astype(kind)

    for plane, others in spec.SEEN.items():
        form = shape["luma" if plane == "y" else "chroma"]
        starts = [0, *accumulate(form["groups"])]
        unit = rng.integers(0, 11, 64)
        put(f"{plane}.unit", unit, "int8")
        inputs = {"static": 87, "ends": 144} | {f"seen.{other}": 159 for other in others}
        inputs |= {f"taps.{g}": 9 * spec.group_inputs(*starts[g : g + 2]) for g in range(len(starts) - 2)}
        for name, count in inputs.items():
            put(f"{plane}.state.{name}", rng.integers(-15, 16, (form["state"], count)), "int16")
        put(f"{plane}.state.bias", rng.integers(-3000, 3000, form["state"]), "int32")
        put(f"{plane}.state.shift", rng.integers(8, 11, form["state"]), "int8")
        steps = [(f"ends.{t}", -3 * np.arange(64)) for t in range(form["end_stages"])]
        for g, size in enumerate(form["groups"]):
            middle = np.zeros((8, size), np.int64)
            middle[3:6] = scale - 128 * unit[starts[g] : starts[g + 1]] + np.array([[-60], [0], [80]])
            steps += [(f"{g}.{t}", middle.reshape(-1)) for t in range(form["stages"][g])]
        for step, bias in steps:
            before = form["state"]
            for i, width in enumerate(form["hidden"]):
                layer = f"{plane}.{step}.hidden.{i}"
                put(f"{layer}.weight", rng.integers(-300, 301, (width, before)), "int16")
                put(f"{layer}.bias", rng.integers(-30000, 30000, width), "int32")
                put(f"{layer}.shift", rng.integers(10, 13, width), "int8")
                before = width
            shift = rng.integers(6, 9, len(bias))
            put(f"{plane}.{step}.out.weight", rng.integers(-15, 16, (len(bias), before)), "int16")
            put(f"{plane}.{step}.out.bias", bias * 2**shift + rng.integers(-500, 500, len(bias)), "int32")
            put(f"{plane}.{step}.out.shift", shift, "int8")
    return arrays


def random_model(kind: str = "stages", scale: int = 740, changes: Mapping[str, NDArray] | None = None) -> bytes:
    shape = SHAPES[kind]
    card = {"name": "random", "codec": "exact", "architecture": shape}
    return serialise({**random_arrays(shape, scale), **(changes or {})}, card)


def check_crafted(
    directory: Path, headers: Mapping[str, bytes], model: bytes, arrays: Mapping[str, list[Ints]] | None = None
) -> dict[str, Stored]:
    """Files made of recipes and coefficients come out of an archive as they were."""
    arrays = arrays or {name: random_coefficients(header) for name, header in headers.items()}
    files = {name: spec.rebuild_file(header, arrays[name]) for name, header in headers.items()}
    stored = store(directory, files, model)
    assert stored.keys() == files.keys()
    for name, row in stored.items():
        found = check(row)
        assert all(np.array_equal(a, b) for a, b in zip(found, arrays[name], strict=True)), name
    return stored


# fmt: off
SAMPLING = [
    (0x22, 0x11, 0x11), (0x41, 0x11, 0x11), (0x14, 0x11, 0x12), (0x11, 0x22, 0x21), (0x22, 0x21, 0x12),
    (0x32, 0x21, 0x11), (0x31, 0x21, 0x31), (0x13, 0x12, 0x13),
]
# fmt: on


@pytest.mark.parametrize("whole", [0, 1])
def test_sampling_factors(tmp_path: Path, whole: int) -> None:
    headers = {}
    for factors in SAMPLING:
        run = start(23, 41, [(k + 1, f, min(k, 1)) for k, f in enumerate(factors)], ONES, OTHERS) + scan(PARTS)
        headers["-".join(map(hex, factors))] = recipe((1, [], run), whole=whole)
    stored = check_crafted(tmp_path, headers, random_model())
    # the others have no blocks beyond the picture
    kept_whole = [name for name, row in stored.items() if spec.read_recipe(row.header).whole]
    assert len(kept_whole) == (6 if whole else 0)


def test_scans_paddings_and_tables(tmp_path: Path) -> None:
    colour = [(7, 0x21, 0), (9, 0x11, 1), (200, 0x11, 1)]
    head = start(40, 64, colour, ONES, OTHERS)
    n = len(head)
    run = head + restarts(1)
    own = scan([(7, 0x00)]), scan([(9, 0x11)]), scan([(200, 0x00)])
    other = scan([(7, 0x23)]), scan([(9, 0x32)]), scan([(200, 0x01)])
    headers = {
        "one": recipe((0, [(2, [0]), (n, [1, AC + 1, AC])], head + scan([(200, 0x11), (7, 0x00), (9, 0x10)]))),
        "two": recipe((1, [], run + own[1]), (0, [], restarts(3) + scan([(200, 0x11), (7, 0x00)]))),
        "bare": recipe((1, [], run + own[0]), (0, [], own[1]), (1, [], own[2]), tail=b""),
        "optimised": recipe(
            (0, [(n, [O, O + AC])], run + own[0]),
            (0, [(0, [O + AC + 1, O + 1])], own[1]),
            (0, [(0, [O + AC]), (0, [O])], own[2]),
        ),
        "destinations": recipe(
            (1, [(n, [O + 2, O + AC + 3])], run + other[0]),
            (1, [(0, [O + 3, O + AC + 2])], other[1]),
            (
                1,
                [(0, [0]), (0, [O + AC + 1])],
                other[2],
            ),
        ),
        "twice": recipe(
            (1, [(2, [O]), (n, [AC]), (n, [O + AC])], run + own[0]), (0, [], own[1]), (1, [(0, [0, AC])], own[2])
        ),
        # a component's steps are those of when its scan begins
        "steps": recipe(
            (1, [], run + own[0]), (1, [], quantisation(0, OTHERS) + quantisation(1, ONES) + own[1]), (1, [], own[2])
        ),
        "around": recipe(
            (1, [], head + b"\xff" + own[0]),
            (1, [], segment(0xFE, b"a comment") + own[1]),
            (1, [], own[2]),
            tail=b"\xff\xff\xd9 and more",
        ),
    }
    arrays = {}
    for name, header in headers.items():
        arrays[name] = random_coefficients(header, 3)
        for array in arrays[name]:
            array[..., 12:] = 0
    stored = check_crafted(tmp_path, headers, random_model(scale=900), arrays)
    left_out = [
        [
            (part.at, list(part.tables))
            for found in spec.read_recipe(stored[name].header).scans
            for part in found.left_out
        ]
        for name in ("optimised", "destinations")
    ]
    assert left_out == [
        [(n, [O, O + AC]), (0, [O + AC + 1, O + 1]), (0, [O + AC]), (0, [O])],
        [(n, [O + 2, O + AC + 3]), (0, [O + 3, O + AC + 2]), (0, [0]), (0, [O + AC + 1])],
    ]


def progressive_scan(parts: Sequence[tuple[int, int]], first: int, last: int, high: int, low: int) -> bytes:
    return segment(0xDA, bytes([len(parts), *(v for part in parts for v in part), first, last, 16 * high + low]))


def form(bits: int, **odd: Sequence[tuple[int, ...] | int | tuple[int, int, bytes]]) -> bytes:
    """The form byte and the odd endings, zeros and stops of a scan."""
    out = bytes([bits | 2 * ("endings" in odd) | 4 * ("zeros" in odd) | 8 * ("stops" in odd)])
    for name in ("endings", "zeros", "stops"):
        if name in odd:
            out += number(len(odd[name]))
            before = 0
            for one in odd[name]:
                place, *rest = one if isinstance(one, tuple) else (one,)
                assert isinstance(place, int)
                out += number(place - before)
                before = place
                for value in rest:
                    out += number(len(value)) + value if isinstance(value, bytes) else bytes([value])  # type: ignore[list-item]
    return out


def test_odd_scans() -> None:
    """All that recipes say of scans that are not coded as libjpeg codes them; both readers write the same files."""
    from zippy_batch.jpeg.file import parse, rebuild

    start_of = start(40, 64, GREY, ONES)[:-13] + segment(0xC2, bytes([8, 0, 40, 0, 64, 1, 1, 0x11, 0]))
    one = [(1, 0)]

    def record(scan: bytes, run: bytes, tables: Sequence[int]) -> bytes:
        left_out = number(len(tables)) + b"".join(
            number(0 if run[:1] != b"\xff" or run[1] != 0xD8 else len(start_of)) + bytes([1, t]) for t in tables
        )
        return scan + left_out + number(len(run)) + run

    first = record(form(1), start_of + progressive_scan(one, 0, 0, 0, 3), [O])
    restart = restarts(7)
    scans = [
        first,
        record(
            form(1, zeros=[(2, 1), (3, 3), (39, 2)], stops=[0, 5, 12]),
            restart + progressive_scan(one, 1, 63, 0, 2),
            [O + AC],
        ),
        record(
            form(0, endings=[(0, 0, b""), (3, 5, b"\xff\x01"), (5, 127, b"")]), progressive_scan(one, 0, 0, 3, 2), []
        ),
        record(form(17, zeros=[(1, 1), (20, 2)], stops=[1, 2, 30]), progressive_scan(one, 1, 63, 2, 1), [O + AC]),
        record(form(1, stops=[38]), progressive_scan(one, 1, 63, 1, 0), [O + AC]),
    ]
    header = bytes([1, 0, len(scans)]) + b"".join(scans) + EOI
    coefficients = random_coefficients(header)
    coefficients[0][1:4, :, 3:] = 0
    coefficients[0][:, 5, 10:40] = 0
    file = spec.rebuild_file(header, coefficients)
    assert rebuild(header, [array.astype(np.int16) for array in coefficients]) == file
    # what a scan leaves unfinished, here the lowest bits of DC, is not in the file
    coefficients[0][..., 0] &= ~3
    found = parse(file)
    assert np.array_equal(found.coefficients[0], coefficients[0])
    assert spec.rebuild_file(found.header, coefficients) == file


@pytest.mark.parametrize(("first", "other", "scale"), [(16, 300, 1800), (65535, 65535, 2800)])
def test_large_steps(tmp_path: Path, first: int, other: int, scale: int) -> None:
    run = start(16, 24, GREY, [first, 3000, *[other] * 62]) + scan([(1, 0)])
    check_crafted(tmp_path, {"a": recipe((1, [], run))}, random_model(scale=scale))


@pytest.mark.parametrize("kind", SHAPES)
def test_architectures(tmp_path: Path, kind: str) -> None:
    run = start(24, 40, [(1, 0x22, 0), (2, 0x11, 1), (3, 0x11, 1)], ONES, OTHERS) + scan(PARTS)
    check_crafted(tmp_path, {"a": recipe((1, [], run))}, random_model(kind))


def test_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped: list[int] = []
    pop = Lane.pop_escaped

    def counted(lane: Lane) -> int:
        escaped.append(pop(lane))
        return escaped[-1]

    monkeypatch.setattr(Lane, "pop_escaped", counted)
    # all codes have 16 bits, so that categories up to 15 have some
    tables = segment(0xC4, bytes([0, *[0] * 15, 16, *range(16)]))
    tables += segment(0xC4, bytes([AC, *[0] * 15, 255, *range(255)]))
    header = recipe((1, [], start(40, 40, GREY, ONES) + tables + scan([(1, 0)])))
    coefficients = random_coefficients(header)
    coefficients[0][..., 0] = 0
    coefficients[0][0, 1:4, 0] = 16384, 32767, 16384
    coefficients[0][3, 1:4, 0] = -16384, -32767, -16384
    coefficients[0][2, 2, 40:] = [32767, *[0] * 23]
    coefficients[0][2, 3, 63] = -32767
    check_crafted(tmp_path, {"a": header}, random_model(), {"a": coefficients})
    assert {16384, 32767, -16384, -32767} <= set(escaped)


def test_codes_that_are_too_long(tmp_path: Path) -> None:
    # a tree that is one chain: each frequency is the sum of all lower ones
    counts = [1, 2]
    while len(counts) < 16:
        counts.append(counts[-1] + counts[-2])
    symbols = [(i // 10, 10 - i % 10) for i, count in enumerate(counts) for _ in range(count)]
    rng = np.random.default_rng(0)
    rng.shuffle(symbols)
    columns = -(-len(symbols) // 32)
    array = np.zeros((32 * columns, 64), np.int64)
    array[:, 0] = rng.integers(-900, 900, len(array))
    for block, (zeros, size) in zip(array, symbols, strict=False):
        block[1 + zeros] = rng.integers(2 ** (size - 1), 2**size)
    run = start(256, 8 * columns, GREY, ONES) + restarts(1)
    header = recipe((1, [(len(run), [O, O + AC])], run + scan([(1, 0)])))
    used = {
        16 * zeros + size: count for (zeros, size), count in zip(dict.fromkeys(sorted(symbols)), counts, strict=True)
    }
    assert sum(spec.optimised_table({**used, 0: sum(counts)})[0]) == 17
    stored = check_crafted(tmp_path, {"a": header}, random_model(scale=700), {"a": [array.reshape(32, columns, 64)]})
    # the program takes it for optimised as well
    assert spec.read_recipe(stored["a"].header).scans[0].left_out


def changed(name: str, value: int) -> dict[str, NDArray]:
    array = random_arrays(SHAPES["stages"])[name].copy()
    array.reshape(-1)[0] = value
    return {name: array}


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("y.unit", 11, True),
        ("cb.unit", -1, True),
        ("y.state.shift", 0, True),
        ("y.0.0.out.shift", 22, False),
        ("y.0.0.out.shift", 23, True),
        ("cr.ends.1.hidden.2.bias", 2**24, True),
    ],
)
def test_both_readers_refuse_the_same_models(tmp_path: Path, name: str, value: int, refused: bool) -> None:
    model = random_model(changes=changed(name, value))
    header = recipe((1, [], start(16, 24, GREY, ONES) + scan([(1, 0)])))
    if not refused:
        check_crafted(tmp_path, {"a": header}, model)
        return
    with pytest.raises(ValueError, match=name.rsplit(".", 1)[0]):
        spec.check_model(load(model), architecture(model))
    with pytest.raises(ModelError, match=name.rsplit(".", 1)[0]):
        store(tmp_path, {"a": spec.rebuild_file(header, random_coefficients(header))}, model)


@pytest.mark.parametrize("name", ["y.state", "cr.state", "y.1.2.hidden.0", "cb.ends.0.out"])
def test_both_readers_draw_the_line_at_the_same_sum(tmp_path: Path, name: str) -> None:
    arrays = {key: array.astype(np.int64) for key, array in random_arrays(SHAPES["stages"]).items()}
    used = 2 ** arrays[f"{name}.shift"][0]
    for key, array in arrays.items():
        if key.startswith(f"{name}.") and array.ndim == 2:
            used += (256 if name.endswith("state") else 255) * np.abs(array[0]).sum()
    header = recipe((1, [], start(16, 24, [(k, 0x11, 0) for k in (1, 2, 3)], ONES) + scan([(k, 0) for k in (1, 2, 3)])))
    for total in (2**24 - 1, 2**24):
        model = random_model(changes=changed(f"{name}.bias", used - total))
        (tmp_path / str(total)).mkdir()
        if total < 2**24:
            check_crafted(tmp_path / str(total), {"a": header}, model)
            continue
        with pytest.raises(ValueError, match="sums"):
            spec.check_model(load(model), architecture(model))
        with pytest.raises(ModelError, match="not exact"):
            store(tmp_path / str(total), {"a": spec.rebuild_file(header, random_coefficients(header))}, model)


def test_the_last_table_of_a_destination_counts_for_both() -> None:
    """One table left out, another of the same destination kept behind it: both readers use the one that is kept."""
    from zippy_batch.jpeg.file import parse, rebuild
    from zippy_batch.jpeg.recipe import Run, read_recipe, write_recipe
    from zippy_batch.jpeg.tables import STANDARD, kind_of, write_segment

    image = parse(_grey_jpeg())
    (run,) = read_recipe(image.header).runs
    table = STANDARD[4]
    # the run ends with its scan header, 10 bytes for one component
    own = write_segment([(4, table[:16] + table[17:15:-1] + table[18:])])
    other = Run(run.data[:-10] + own + run.data[-10:], run.pad, [(len(run.data) - 10, [kind_of(4, False)])])
    header = write_recipe([other], b"\xff\xd9", padded=False)
    ours = rebuild(header, image.coefficients)
    assert spec.rebuild_file(header, [c.astype(np.int64) for c in image.coefficients]) == ours
    assert ours != rebuild(image.header, image.coefficients)
    again = parse(ours)
    assert all(np.array_equal(a, b) for a, b in zip(again.coefficients, image.coefficients, strict=True))


def test_a_height_behind_the_first_scan_counts_for_both() -> None:
    from zippy_batch.jpeg.file import parse

    data = _grey_jpeg()
    frame, end = data.index(b"\xff\xc0"), data.rindex(EOI)
    for height in (b"\0\0", b"\0\x40"):
        other = (
            data[: frame + 5] + height + data[frame + 7 : end] + segment(0xDC, data[frame + 5 : frame + 7]) + data[end:]
        )
        found = parse(other)
        assert spec.rebuild_file(found.header, [c.astype(np.int64) for c in found.coefficients]) == other


def _grey_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pictures(1, 24, 24, 3)[0]).convert("L").save(stream, "JPEG", quality=75)
    return stream.getvalue()
