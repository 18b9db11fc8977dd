"""The specification is enough to read archives: a decoder written from it agrees with the package's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import spec_decoder
from numpy.typing import NDArray
from spec_decoder import SpecError
from tiny import clamped_model, pictures, tiny_model

from zippy_batch.archives.reader import Archive
from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem
from zippy_batch.codecs.model_file import load_model, model_from_bytes

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
    with Archive.open(GOLDEN) as archive:
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
