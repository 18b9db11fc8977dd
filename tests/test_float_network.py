"""The float network, its integers, and the float network made of those again: all compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import pictures, tiny_model, tiny_network
from torch import Tensor

from zippy_batch.codecs.latent.codec import LatentCodec, LatentItem
from zippy_batch.codecs.latent.export import export_arrays
from zippy_batch.codecs.latent.features import spatial_features
from zippy_batch.codecs.latent.network import LatentNetwork, as_float, interpolate_knots, level_hats, shuffle
from zippy_batch.codecs.latent.rounding import compensated
from zippy_batch.codecs.model_file import Model, load_model, model_from_bytes, serialise
from zippy_batch.training.warm_start import latent_network

SIXTEENTH = 1 / 16
HEIGHT, WIDTH, QUALITY = 40, 48, 70


def exported(network: LatentNetwork, images: NDArray[np.uint8]) -> Model:
    card = {"name": "exported", "architecture": network.architecture.to_dict()}
    return model_from_bytes(serialise(export_arrays(network, [images]), card))


def assert_same(network: LatentNetwork, model: Model) -> None:
    """The rounded network predicts what the integer context does, and its synthesis gives the same pixels."""
    images = list(pictures(3, HEIGHT, WIDTH, seed=7))
    codec = LatentCodec(model, precision=torch.float32)
    items = [LatentItem(p, HEIGHT, WIDTH, False, QUALITY) for p in codec.encode(images, [QUALITY] * 3)]
    residuals, _ = codec.encode_symbols(images, [QUALITY] * 3)
    y_hat = torch.from_numpy(codec.decode_symbols(items)[0]).float() * SIXTEENTH
    found: list[NDArray[np.float32]] = []

    def as_coded(residual: Tensor) -> tuple[Tensor, Tensor]:
        found.append(residual.numpy().reshape(3, -1))
        return residual, residual

    level = torch.full((3,), float(codec.level_of(QUALITY)))
    hats, spatial = level_hats(level), as_float(spatial_features(HEIGHT, WIDTH, False))[None]
    with torch.no_grad():
        gain, inverse = (
            interpolate_knots(table, level).exp()[:, None, None]
            for table in (network.log_gain, network.log_inverse_gain)
        )
        network.code(y_hat, gain, spatial, hats, as_coded)
        out = shuffle(network.synthesis(y_hat * inverse, spatial, hats)) + 0.5
    apart = np.abs(np.concatenate(found, 1) - residuals)
    # half a sixteenth is what rounding means takes
    assert apart.mean() < SIXTEENTH / 3
    assert apart.max() < 3 * SIXTEENTH
    levels = (out.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(levels - np.stack(codec.decode(items))).max() < 2.5


@pytest.mark.parametrize("name", ["tiny", "faces"])
def test_the_network_made_of_a_model_computes_what_the_model_does(name: str) -> None:
    model = tiny_model() if name == "tiny" else load_model(name)
    network = latent_network(model).eval()
    network.quantise_activations()
    assert_same(network, model)


def test_a_model_computes_what_the_rounded_network_does_that_it_was_made_of() -> None:
    network, images = tiny_network().eval(), pictures(8, HEIGHT, WIDTH, seed=3)
    model = exported(network, images)
    network.quantise_activations()
    assert_same(network, model)


def test_weights_that_are_rounded_stay_as_they_are() -> None:
    model = tiny_model()
    again = exported(latent_network(model).eval(), pictures(4, HEIGHT, WIDTH, seed=3))
    weights = [name for name, array in model.arrays.items() if array.dtype == np.int8 and name.endswith(".weight")]
    # the unit of the synthesis's input is measured anew
    for name in set(weights) - {"synthesis.first.weight"}:
        assert np.array_equal(again.arrays[name], model.arrays[name]), name
    assert len(weights) > 40


def test_rounding_makes_up_for_its_errors_where_inputs_go_together() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(4000, 12, generator=rng, dtype=torch.float64)
    inputs = hidden @ torch.randn(12, 96, generator=rng, dtype=torch.float64)
    weight = 20 * torch.randn(32, 96, generator=rng, dtype=torch.float64)
    weight = weight.clamp(-63, 63)
    weight[:, 5] = 63
    whole = compensated(weight, inputs.T @ inputs / len(inputs), 63)
    assert whole.abs().max() == 63
    assert torch.equal(whole[:, 5], weight[:, 5])
    assert torch.equal(whole, whole.round())

    def error(other: Tensor) -> float:
        return float(((weight - other) @ inputs.T).square().mean())

    assert error(whole) < error(weight.round()) / 5
    independent = torch.eye(96, dtype=torch.float64)
    assert torch.equal(compensated(weight, independent, 63), weight.round())
