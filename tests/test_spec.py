"""The specification is enough to read archives: a decoder written from it agrees with the package's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import spec_decoder
from numpy.typing import NDArray
from spec_decoder import SpecError
from tiny import clamped_model, pictures, tiny_model

from zippy_batch.archives.reader import ArchiveReader
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem
from zippy_batch.codecs.model_file import load_model, model_from_bytes, serialise
from zippy_batch.errors import ModelError

GOLDEN = Path(__file__).parent / "golden" / f"v{FORMAT_VERSION}.parquet"
SIZES = [(1, 1), (7, 9), (42, 42), (33, 57), (3, 41)]


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(tiny_model())


def compare(codec: LatentCodec, model: bytes, item: LatentItem) -> None:
    shape = (item.height, item.width, item.grey, item.quality)
    found = spec_decoder.decode(model, item.payload, *shape)
    wanted, damage = codec.decode_symbols([item])
    assert damage == {}
    assert np.array_equal(found, wanted[0])
    assert np.array_equal(spec_decoder.synthesise(model, found, *shape), codec.decode([item])[0])


def check(codec: LatentCodec, model: bytes, image: NDArray[np.uint8], quality: int) -> bytes:
    payload = codec.encode([image], [quality])[0]
    compare(codec, model, LatentItem(payload, image.shape[0], image.shape[1], image.ndim == 2, quality))
    return payload


@pytest.mark.parametrize("quality", [1, 40, 100])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_both_decoders_agree(codec: LatentCodec, height: int, width: int, grey: bool, quality: int) -> None:
    image = pictures(1, height, width, quality)[0]
    check(codec, tiny_model().data, image[..., 0] if grey else image, quality)


@pytest.mark.parametrize(("height", "width", "grey"), [(300, 450, False), (72, 4096, True)])
def test_both_decoders_agree_on_lanes(codec: LatentCodec, height: int, width: int, grey: bool) -> None:
    lanes = -(-height // 8) * -(-width // 8) // 1024
    assert lanes > 1
    image = pictures(1, height, width)[0]
    check(codec, tiny_model().data, image[..., 0] if grey else image, 40)


def test_both_decoders_agree_on_escapes(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped: list[int] = []
    pop = spec_decoder.Lane.pop_escaped

    def counted(lane: spec_decoder.Lane) -> int:
        escaped.append(pop(lane))
        return escaped[-1]

    monkeypatch.setattr(spec_decoder.Lane, "pop_escaped", counted)
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 40, 3))
    check(codec, tiny_model().data, noise, 100)
    assert min(escaped) < 0 < max(escaped)


def test_both_decoders_agree_where_everything_is_clamped() -> None:
    model = clamped_model()
    image = pictures(1, 42, 42)[0]
    check(LatentCodec(model), model.data, image, 100)


@pytest.mark.parametrize(("height", "width", "grey", "quality"), [(42, 42, False, 60), (19, 70, True, 85)])
def test_both_decoders_agree_on_the_built_in_model(height: int, width: int, grey: bool, quality: int) -> None:
    model = load_model("faces")
    image = pictures(1, height, width)[0]
    check(LatentCodec(model), model.data, image[..., 0] if grey else image, quality)


def test_both_decoders_agree_where_gates_are_clamped() -> None:
    model = load_model("faces")
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 40, 3))
    check(LatentCodec(model), model.data, noise, 60)


def test_both_decoders_agree_on_the_golden_archive() -> None:
    with ArchiveReader.open(GOLDEN) as archive:
        model = archive.info.model_files["latent"]
    codec = LatentCodec(model_from_bytes(model))
    rows = [row for row in pq.read_table(GOLDEN).to_pylist() if row["codec"] == "latent"]
    assert len({(row["height"], row["width"], row["grey"]) for row in rows}) > 3
    for row in rows:
        compare(codec, model, LatentItem(row["payload"], row["height"], row["width"], row["grey"], row["quality"]))


def test_the_check_finds_damage(codec: LatentCodec) -> None:
    image = pictures(1, 30, 30)[0]
    payload = codec.encode([image], [75])[0]
    refused = 0
    for at in range(0, len(payload), 7):
        broken = bytearray(payload)
        broken[at] ^= 16
        item = LatentItem(bytes(broken), 30, 30, False, 75)
        try:
            spec_decoder.decode(tiny_model().data, item.payload, 30, 30, False, 75)
        except SpecError:
            refused += 1
            assert set(codec.decode_symbols([item])[1]) == {0}
        else:
            assert codec.decode_symbols([item])[1] == {}
    assert refused


def test_both_decoders_read_the_same_lengths_of_lanes(codec: LatentCodec) -> None:
    payload = codec.encode([pictures(1, 256, 512)[0]], [40])[0]
    low, high = payload[:2]
    assert low > 127 >= high
    rest = payload[2:]
    padded = {size: bytes([low, high | 128, *[128] * (size - 3), 0]) for size in (3, 5, 6)}
    accepted = [payload, padded[3] + rest, padded[5] + rest]
    refused = [padded[6] + rest, b"\xff\x7f" + rest, payload[:1], b"", payload + b"\0", b"\0" + payload, payload[:-1]]
    for data in accepted + refused:
        damage = codec.decode_symbols([LatentItem(data, 256, 512, False, 40)])[1]
        assert bool(damage) == (data in refused)
        if data in refused:
            with pytest.raises(SpecError):
                spec_decoder.decode(tiny_model().data, data, 256, 512, False, 40)
        else:
            spec_decoder.decode(tiny_model().data, data, 256, 512, False, 40)


def test_the_specification_names_every_array_that_decoding_needs() -> None:
    model = tiny_model()
    of_encoder = ("analysis.", "gain.analysis", "encoder.threshold")
    needed = {name for name in model.arrays if not name.startswith(of_encoder)}
    assert needed == set(spec_decoder.wanted_arrays(spec_decoder.read_model(model.data)))


def accepts(name: str, change: Callable[[NDArray[Any]], None], other: dict[str, NDArray[Any]] | None = None) -> bool:
    """Whether both readers take the tiny model with an array changed; they must agree."""
    model = tiny_model()
    array = model.arrays[name].copy()
    change(array)
    data = serialise({**model.arrays, name: array, **(other or {})}, model.card)
    refusals: list[str | None] = [
        refusal(lambda: spec_decoder.read_model(data), SpecError),
        refusal(lambda: LatentCodec(model_from_bytes(data)), ModelError),
    ]
    assert refusals == [None, None] or all(why and name.rsplit(".", 1)[0] in why for why in refusals), refusals
    return refusals == [None, None]


def refusal(read: Callable[[], object], kind: type[Exception]) -> str | None:
    try:
        read()
    except kind as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("context.blind.static.spatial", -(1 << 30), 1 << 30),
        ("context.fine.2.static.level", -(1 << 30), 1 << 30),
        ("synthesis.static.bias", -(1 << 28), 1 << 28),
        ("context.coarse.3.depth", -(1 << 28), 1 << 28),
        ("context.fine.3.1.first.bias", -(1 << 28), 1 << 28),
        ("context.fine.1.shared.weight", -64, 64),
        ("context.coarse.1.1.own.weight", -64, 64),
        ("context.blind.0.first.scale.mantissa", 0, (1 << 30) - 1),
        ("level.to_canvas.mantissa", 0, (1 << 30) - 1),
        ("synthesis.0.gate.scale.shift", 1, 46),
        ("synthesis.1.expand.bias", 1 - (1 << 30), (1 << 30) - 1),
        ("synthesis.0.depthwise.bias", 1 - (1 << 30), (1 << 30) - 1),
        ("synthesis.first.scale.mantissa", 0, (1 << 25) - 1),
        ("synthesis.last.weight", -64, 64),
        ("synthesis.last.bias", 1 - (1 << 36), (1 << 36) - 1),
        ("quality.level", 0, 704),
    ],
)
def test_both_readers_draw_the_line_at_the_same_value(name: str, low: int, high: int) -> None:
    for value, wanted in ((low, True), (high, True), (low - 1, False), (high + 1, False)):

        def change(array: NDArray[Any], value: int = value) -> None:
            array.flat[0] = value

        assert accepts(name, change) == wanted, value


@pytest.mark.parametrize("layer", ["context.coarse.2.0.hidden", "context.fine.1.1.out"])
@pytest.mark.parametrize("sign", [1, -1])
def test_both_readers_count_what_the_bias_takes_in(layer: str, sign: int) -> None:
    used = 128 * int(tiny_model().arrays[f"{layer}.weight"][0].astype(int).sum())
    for total, wanted in (((1 << 30) - 1, True), (1 << 30, False)):

        def change(bias: NDArray[Any], total: int = total) -> None:
            bias[0] = sign * total - used

        assert accepts(f"{layer}.bias", change) == wanted


@pytest.mark.parametrize("layer", ["context.coarse.2.shared", "context.fine.3.1.own"])
def test_both_readers_draw_the_line_at_the_same_scaled_sum(layer: str) -> None:
    def change(weight: NDArray[Any]) -> None:
        weight[:] = 0
        weight[0, :2] = 32, -32

    rows = len(tiny_model().arrays[f"{layer}.weight"])
    for mantissa, wanted in ((1 << 16, True), ((1 << 16) + 1, False)):
        scale: dict[str, NDArray[Any]] = {
            f"{layer}.scale.mantissa": np.array([mantissa, *[0] * (rows - 1)], np.int32),
            f"{layer}.scale.shift": np.array([1], np.int8),
        }
        assert accepts(f"{layer}.weight", change, scale) == wanted


def test_both_readers_add_up_the_taps_of_a_channel() -> None:
    for last, wanted in ((-(1 << 13), True), (-(1 << 13) - 1, False)):

        def change(taps: NDArray[Any], last: int = last) -> None:
            taps[:, 0] = 0
            taps[[2, 7], 0] = 1 << 13, last

        assert accepts("synthesis.1.depthwise.taps", change) == wanted
