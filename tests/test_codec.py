"""The lossy codec end to end: what is promised about symbols, sizes and damage."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import clamped_model, pictures, tiny_model

from zippy_batch.archives.schema import FORMAT_VERSION
from zippy_batch.codecs.int8 import ProductKind, products
from zippy_batch.codecs.latent import codec as codec_module
from zippy_batch.codecs.latent.backend import ProcessorBackend, TorchBackend
from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem, grid
from zippy_batch.codecs.latent.network import lambda_of
from zippy_batch.codecs.latent.synthesis import _halves
from zippy_batch.codecs.model_file import Model, load_model, model_from_bytes, serialise
from zippy_batch.errors import DamagedRow, ModelError


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(tiny_model())


@pytest.fixture(scope="module")
def faces_codec() -> LatentCodec:
    return LatentCodec(load_model("faces"))


def items(payloads: list[bytes], images: list[np.ndarray], qualities: list[int]) -> list[LatentItem]:
    return [
        LatentItem(p, i.shape[0], i.shape[1], i.ndim == 2, q)
        for p, i, q in zip(payloads, images, qualities, strict=True)
    ]


def symbols(codec: LatentCodec, batch: list[LatentItem], size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(batch), size):
        y_hat, damage = codec.decode_symbols(batch[start : start + size])
        assert damage == {}
        parts.append(np.asarray(y_hat))
    return np.concatenate(parts)


def pixels(codec: LatentCodec, batch: list[LatentItem], size: int) -> np.ndarray:
    return np.stack([image for i in range(0, len(batch), size) for image in codec.decode(batch[i : i + size])])


@pytest.mark.parametrize("model", ["codec", "faces_codec"])
def test_pixels_do_not_depend_on_batch_threads_or_precision(model: str, request: pytest.FixtureRequest) -> None:
    codec: LatentCodec = request.getfixturevalue(model)
    images = list(pictures(67, 42, 42))
    qualities = [1 + (37 * i) % 100 for i in range(67)]
    batch = items(codec.encode(images, qualities), images, qualities)
    want = pixels(codec, batch, 64)  # 64 and a ragged 3
    threads = torch.get_num_threads()
    try:
        for size, count in ((1, 1), (7, 1), (67, 1), (4, 2)):
            torch.set_num_threads(count)
            some = batch if count == 1 else batch[:8]
            assert np.array_equal(pixels(codec, some, size), want[: len(some)])
    finally:
        torch.set_num_threads(threads)
    half = LatentCodec(tiny_model() if model == "codec" else load_model("faces"), precision=torch.bfloat16)
    assert np.array_equal(pixels(half, batch, 64), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(pixels(codec, batch, 64), want)


def codecs_of(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[LatentCodec]:
    """With the passes of the processor and those of other devices, and each kind of products that is exact here."""
    kinds: tuple[ProductKind, ...] = ("int8", "packed", "float32")
    for kind, backend in product(kinds, (ProcessorBackend, TorchBackend)):
        device = torch.device("cpu")
        if backend is TorchBackend:
            monkeypatch.setattr(codec_module, "backend_of", lambda device, kind: TorchBackend(device, kind))
        with contextlib.suppress(ModelError):
            products(device, kind)
            yield LatentCodec(model, products=kind)
        monkeypatch.undo()


@pytest.mark.parametrize("model", ["tiny", "faces"])
@pytest.mark.parametrize(("size", "n"), [((42, 42), 5), ((30, 71), 2), ((3, 9), 2)])
def test_every_backend_and_product_decodes_the_same_pixels(
    model: str, size: tuple[int, int], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tiny_model() if model == "tiny" else load_model("faces")
    images = list(pictures(n, *size))
    images[-1] = images[-1][..., 0]
    qualities = [1 + (41 * i) % 100 for i in range(n)]
    codecs = list(codecs_of(found, monkeypatch))
    assert len(codecs) >= 2
    for encoder in codecs:
        batch = items(encoder.encode(images, qualities), images, qualities)
        want = codecs[0].decode(batch)
        for decoder in codecs[1:]:
            assert np.array_equal(symbols(decoder, batch, n), symbols(codecs[0], batch, n))
            for a, b in zip(decoder.decode(batch), want, strict=True):
                assert np.array_equal(a, b)


def test_extreme_models_decode_alike_on_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every clamp is reached, and no sum may overflow."""
    images = list(pictures(2, 42, 42))
    codecs = list(codecs_of(clamped_model(), monkeypatch))
    batch = items(codecs[0].encode(images, [100, 3]), images, [100, 3])
    for decoder in codecs[1:]:
        assert np.array_equal(pixels(decoder, batch, 2), pixels(codecs[0], batch, 2))


SETTINGS = [
    {
        **{"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"},
        **{"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "OMP_NUM_THREADS": "3"},
    },
    {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI", "ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_CBWR": "COMPATIBLE"},
]
"""Other processors, as far as the libraries can be told to behave as on one."""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting.values()))
def test_golden_pixels_come_back_on_other_processors(setting: dict[str, str]) -> None:
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from zippy_batch.codecs.latent import codec\n"
        "from zippy_batch.codecs.latent.backend import ProcessorBackend\n"
        "from golden.make import content\n"
        "backend_of = codec.backend_of\n"
        "rows = []\n"
        "for kind in ('int8', 'packed', 'float32'):\n"
        "    codec.backend_of = lambda device, _: backend_of(device, kind)\n"
        "    rows.append(content(Path(sys.argv[1])))\n"
        "print(json.dumps(rows))\n"
    )
    golden = Path(__file__).parent / "golden" / f"v{FORMAT_VERSION}.parquet"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **setting}
    command = [sys.executable, "-c", script, str(golden)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    wanted = json.loads(golden.with_suffix(".json").read_text())
    assert json.loads(done.stdout) == [wanted] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_cross_between_gpu_and_cpu(faces_codec: LatentCodec) -> None:
    gpu = LatentCodec(load_model("faces"), "cuda")
    images = list(pictures(33, 42, 42))
    for encoder, decoder in ((gpu, faces_codec), (faces_codec, gpu)):
        batch = items(encoder.encode(images, [60] * 33), images, [60] * 33)
        for a, b in zip(encoder.decode(batch), decoder.decode(batch), strict=True):
            assert np.array_equal(a, b)


def test_what_bfloat16_wrote_decodes_in_float32(codec: LatentCodec) -> None:
    half = LatentCodec(tiny_model(), precision=torch.bfloat16)
    images = list(pictures(5, 33, 50))
    batch = items(half.encode(images, [80] * 5), images, [80] * 5)
    assert codec.decode_symbols(batch)[1] == {}


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    grey=st.booleans(),
    quality=st.integers(1, 100),
    seed=st.integers(0, 999),
)
def test_any_size_comes_back_in_its_own_shape(height: int, width: int, grey: bool, quality: int, seed: int) -> None:
    codec = LatentCodec(tiny_model())
    image = pictures(1, height, width, seed)[0]
    image = image[..., 0] if grey else image
    payload = codec.encode([image], [quality])
    out = codec.decode(items(payload, [image], [quality]))[0]
    assert out.shape == image.shape
    assert out.dtype == np.uint8


def test_sizes_of_one_grid_share_a_batch(codec: LatentCodec) -> None:
    images = [pictures(1, 42, 42)[0], pictures(1, 48, 41)[0], pictures(1, 44, 45)[0][..., 0]]
    qualities = [30, 60, 90]
    assert len({grid(*i.shape[:2]) for i in images}) == 1
    together = items(codec.encode(images, qualities), images, qualities)
    want = symbols(codec, together, 3)
    alone = np.concatenate([symbols(codec, [item], 1) for item in together])
    assert np.array_equal(alone, want)
    with pytest.raises(ValueError, match="one grid"):
        codec.encode([images[0], pictures(1, 49, 42)[0]], [50, 50])


def test_many_lanes_round_trip(codec: LatentCodec) -> None:
    image = pictures(1, 400, 424)[0]
    batch = items(codec.encode([image], [60]), [image], [60])
    assert codec.decode_symbols(batch)[1] == {}


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_reported_and_spares_the_others(at: float, bit: int) -> None:
    codec = LatentCodec(tiny_model())
    images = list(pictures(3, 40, 40))
    payloads = codec.encode(images, [75] * 3)
    broken = bytearray(payloads[1])
    broken[int(at * len(broken))] ^= 1 << bit
    batch = items([payloads[0], bytes(broken), payloads[2]], images, [75] * 3)
    _, damage = codec.decode_checked(batch)
    assert set(damage) == {1}
    with pytest.raises(DamagedRow, match="image 1"):
        codec.decode(batch)


def test_another_model_is_reported_not_decoded(codec: LatentCodec, faces_codec: LatentCodec) -> None:
    images = list(pictures(4, 42, 42))
    payloads = faces_codec.encode(images, [75] * 4)
    assert set(codec.decode_symbols(items(payloads, images, [75] * 4))[1]) == {0, 1, 2, 3}


def test_quality_buys_bytes_and_psnr(faces_codec: LatentCodec) -> None:
    images = list(pictures(16, 42, 42))
    sizes, errors = [], []
    for quality in range(5, 101, 5):
        payloads = faces_codec.encode(images, [quality] * 16)
        out = faces_codec.decode(items(payloads, images, [quality] * 16))
        sizes.append(sum(map(len, payloads)))
        errors.append(np.mean((np.stack(out).astype(float) - np.stack(images)) ** 2))
    assert all(np.diff(sizes) > 0)
    assert all(np.diff(errors) < 0)


def test_grey_costs_no_more_than_colour(faces_codec: LatentCodec) -> None:
    luma = [i[..., 1] for i in pictures(16, 42, 42)]
    grey = sum(map(len, faces_codec.encode(luma, [75] * 16)))
    colour = sum(map(len, faces_codec.encode([np.repeat(i[..., None], 3, 2) for i in luma], [75] * 16)))
    assert grey <= colour


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_outside_the_range_is_refused(codec: LatentCodec, quality: int) -> None:
    with pytest.raises(DamagedRow, match="quality"):
        codec.decode([LatentItem(b"", 8, 8, False, quality)])


def changed(name: str, value: np.ndarray) -> bytes:
    model = tiny_model()
    return serialise({**model.arrays, name: value}, model.card)


def test_a_model_whose_sums_could_round_is_refused() -> None:
    weight = np.full_like(tiny_model().arrays["context.fine.1.0.hidden.weight"], 65)
    with pytest.raises(ModelError, match="not exact"):
        LatentCodec(model_from_bytes(changed("context.fine.1.0.hidden.weight", weight)))


@pytest.mark.parametrize(
    "name",
    [
        "context.blind.static.spatial",
        "context.coarse.2.depth",
        "context.fine.1.shared.weight",
        "context.fine.3.1.own.scale.mantissa",
        "quality.level",
        "level.to_canvas.shift",
        "analysis.first.weight",
        "synthesis.first.weight",
        "synthesis.0.depthwise.taps",
        "synthesis.1.expand.weight",
        "entropy.radius",
        "entropy.frequencies",
        "gain.analysis",
        "encoder.threshold",
    ],
)
def test_a_model_of_wrong_shapes_or_types_is_refused(name: str) -> None:
    array = tiny_model().arrays[name]
    with pytest.raises(ModelError, match=name):
        LatentCodec(model_from_bytes(changed(name, array[:-1])))
    with pytest.raises(ModelError, match=name):
        LatentCodec(model_from_bytes(changed(name, array.astype(np.int64))))


@pytest.mark.parametrize("name", ["analysis.first.weight", "analysis.blocks.0.depthwise.bias", "gain.analysis"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_whose_floats_are_not_finite_is_refused(name: str, value: float) -> None:
    array = tiny_model().arrays[name].copy()
    array.flat[3] = value
    with pytest.raises(ModelError, match=f"{name}.*must be finite"):
        LatentCodec(model_from_bytes(changed(name, array)))


def test_a_weight_of_two_halves_whose_sums_could_overflow_is_refused() -> None:
    backend = ProcessorBackend("float32")
    rows = np.zeros((4, 512), np.int8)
    rows[1] = 32
    _halves({"w": rows}, "w", 2, 512, backend)
    rows[3, 5] = -1
    with pytest.raises(ModelError, match=r"layer w is not exact: .* at most 2\^21"):
        _halves({"w": rows}, "w", 2, 512, backend)


def test_a_model_file_of_another_format_says_so() -> None:
    model = tiny_model()
    old = serialise(model.arrays, {**model.card, "format": 1})
    with pytest.raises(ModelError, match="a model file of format 1, and this version reads format 2"):
        model_from_bytes(old)


def test_a_model_whose_levels_are_out_of_range_is_refused() -> None:
    with pytest.raises(ModelError, match=r"quality\.level"):
        LatentCodec(model_from_bytes(changed("quality.level", np.full(100, 705, np.int16))))


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 4096},
        {"width": 24.0},
        {"width": "24"},
        {"width": -3},
        {"blocks": 10**9},
        {"blocks": 4000},
        {"depth": 1},
    ],
)
def test_a_model_of_impossible_sizes_is_refused_before_it_takes_memory(sizes: dict[str, object]) -> None:
    model = tiny_model()
    card = {**model.card, "architecture": {**model.card["architecture"], **sizes}}
    with pytest.raises(ModelError) as error:
        LatentCodec(model_from_bytes(serialise(model.arrays, card)))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"x" * 100])
def test_a_file_that_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        model_from_bytes(data)


def test_equal_content_is_equal_bytes() -> None:
    model = tiny_model()
    assert serialise(dict(reversed(list(model.arrays.items()))), model.card) == model.data


def test_effort_lowers_the_cost_and_says_the_same_every_time() -> None:
    images = list(pictures(3, 42, 42))
    model = load_model("faces")
    quality, weight = 60, float(lambda_of(torch.tensor(float(LatentCodec(model).level_of(60)))))

    def cost(codec: LatentCodec) -> tuple[float, list[bytes]]:
        payloads = codec.encode(images, [quality] * len(images))
        back = codec.decode(items(payloads, images, [quality] * len(images)))
        errors = sum(float(np.square(a.astype(float) - b).mean()) for a, b in zip(images, back, strict=True))
        return 8 * sum(map(len, payloads)) / (42 * 42) + weight * errors, payloads

    plain, _ = cost(LatentCodec(model))
    refined, payloads = cost(LatentCodec(model, effort=1))
    assert refined < plain
    assert LatentCodec(model, effort=1).encode(images, [quality] * len(images)) == payloads


def test_effort_takes_sizes_and_greyness_as_they_come(codec: LatentCodec) -> None:
    images = [pictures(1, 41, 48)[0], pictures(1, 48, 43)[0][..., 0], pictures(1, 48, 48)[0]]
    slow = LatentCodec(tiny_model(), effort=1)
    payloads = slow.encode(images, [40, 60, 90])
    back = codec.decode(items(payloads, images, [40, 60, 90]))
    assert [b.shape for b in back] == [i.shape for i in images]


def test_images_too_large_to_refine_are_coded_as_without_effort(codec: LatentCodec) -> None:
    image = pictures(1, 520, 520)[0]
    assert LatentCodec(tiny_model(), effort=1).encode([image], [50]) == codec.encode([image], [50])
