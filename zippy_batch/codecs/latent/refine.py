"""Latents refined image by image before they are coded: fewer bytes for more time; the decoder does not change.

The analysis answers at once with latents that are good for most images. Gradient steps on the latents of this very
image, through the float network that computes what the integer networks do, find better ones. Rounding has no gradient;
each residual is instead drawn between the integers around it, by odds that depend on its distance and grow harder from
step to step (stochastic Gumbel annealing).

Source: Yang, Bamler, Mandt 2020, "Improving inference for neural image compression" (arXiv:2006.04240).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippy_batch.codecs.integer import fast_type
from zippy_batch.codecs.latent.features import PATCH, spatial_features
from zippy_batch.codecs.latent.network import (
    LatentNetwork,
    as_float,
    interpolate_knots,
    lambda_of,
    level_hats,
    nearest,
)
from zippy_batch.codecs.latent.static import Size

STEPS = (0, 30, 40, 55, 75, 100, 140, 180, 240, 300)
"""Gradient steps of each effort; fewer than 30 gain nothing."""
_SHARE = 0.8
"""Of lambda: dead-zone rounding without effort has the same effect, and a quality should mean about the same PSNR."""
_RATE = 0.03
_HOT, _COLD = 0.5, 0.1
"""Temperature of the odds at the first and the last step."""
_BETAS = (0.9, 0.95)
_POSITIONS = 4096
"""Positions refined together, about 500 by 500 pixels."""


def can_refine(grid: tuple[int, int]) -> bool:
    """Whether images of a grid (h, w) can be refined: gradients of larger ones take too much memory."""
    return grid[0] * grid[1] <= _POSITIONS


def refined(
    network: LatentNetwork, y: Tensor, blocks: Tensor, sizes: Sequence[Size], level: NDArray[np.int64], effort: int
) -> Tensor:
    """y (N, h, w, M) in quantisation steps, blocks (N, h, w, 192) uint8 that they were made of, the image sizes and
    levels (N,) -> better latents of the same shape, to be rounded to the nearest. Effort 1..9; the outcome depends on
    nothing but the arguments.
    """
    n, h, w, _ = y.shape
    together = max(1, _POSITIONS // (h * w))
    parts = []
    with torch.inference_mode(False):
        for start in range(0, n, together):
            some = slice(start, start + together)
            images = _Images(network, blocks[some], list(sizes)[some], level[some])
            parts.append(images.refine(y[some].clone(), STEPS[effort]))
    return torch.cat(parts)


class _Images:
    """A batch of images, and what their latents cost."""

    def __init__(self, network: LatentNetwork, blocks: Tensor, sizes: Sequence[Size], level: NDArray[np.int64]) -> None:
        device = network.log_gain.device
        self._precision = fast_type(device)
        self._network = network
        self._target = blocks.to(device).float() / 255 - 0.5
        self._spatial = torch.stack([as_float(spatial_features(*size)) for size in sizes]).to(device)
        levels = torch.from_numpy(level.astype(np.float32)).to(device)
        self._hats = level_hats(levels)
        with torch.no_grad():
            self._gain = interpolate_knots(network.log_gain, levels).exp()[:, None, None]
            self._inverse = interpolate_knots(network.log_inverse_gain, levels).exp()[:, None, None]
        self._lambda = _SHARE * lambda_of(levels)
        self._grey = torch.tensor([size[2] for size in sizes], device=device)[:, None, None, None]
        self._inside = torch.stack([_inside(size, blocks.shape[1:3]) for size in sizes]).to(device)
        self._pixels = torch.tensor([size[0] * size[1] for size in sizes], device=device)

    def refine(self, y: Tensor, steps: int) -> Tensor:
        """Better latents, or those given where steps made them no better."""
        generator = torch.Generator(y.device).manual_seed(0)
        best, first = self._cost(y, None), y
        with torch.enable_grad():
            y = y.clone().requires_grad_(True)
            optimiser = torch.optim.Adam([y], lr=_RATE, betas=_BETAS)
            for step in range(steps):
                share = step / steps
                optimiser.param_groups[0]["lr"] = _RATE * (1 - 0.9 * share)
                optimiser.zero_grad()
                self._cost(y, _Draw(_HOT * (_COLD / _HOT) ** share, generator)).sum().backward()
                optimiser.step()
        y = y.detach()
        better = self._cost(y, None) < best
        return torch.where(better[:, None, None, None], y, first)

    def _cost(self, y: Tensor, draw: _Draw | None) -> Tensor:
        """(N,) bits per pixel plus weighted squared error, with residuals as `draw` makes them, or rounded."""
        network = self._network
        rounded = draw is None
        narrow = not rounded and self._precision != torch.float32
        with torch.set_grad_enabled(not rounded):
            with torch.autocast(y.device.type, self._precision, enabled=narrow):
                y_hat, bits = network.code(y, self._gain, self._spatial, self._hats, draw or nearest)
                out = network.synthesis(y_hat * self._inverse, self._spatial, self._hats).float()
            n, h, w, _ = out.shape
            colours = out.view(n, h, w, 3, -1)
            mean = colours.mean(3, keepdim=True).expand_as(colours)
            error = torch.where(self._grey[..., None], mean, colours).reshape(out.shape) - self._target
            squared = (error.square() * self._inside).sum((1, 2, 3)) * (255.0**2 / 3)
            return (bits + self._lambda * squared) / self._pixels


class _Draw:
    """Residuals -> soft residuals between the integers around them."""

    def __init__(self, temperature: float, generator: torch.Generator) -> None:
        self._temperature, self._generator = temperature, generator

    def __call__(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        floor = residual.detach().floor()
        up = (residual - floor).clamp(1e-5, 1 - 1e-5)
        odds = (torch.atanh(up) - torch.atanh(1 - up)) / self._temperature
        # the difference of two Gumbel variables is a logistic one
        even = torch.rand(up.shape, generator=self._generator, device=up.device).clamp_(1e-6, 1 - 1e-6)
        soft = floor + torch.sigmoid(odds + torch.log(even) - torch.log1p(-even))
        return soft, soft


def _inside(size: Size, grid: Sequence[int]) -> Tensor:
    """(h, w, 192) 1 where a block's value is a pixel of the image, 0 where it is padding."""
    height, width, _ = size
    h, w = grid
    pixels = np.zeros((h * PATCH, w * PATCH), np.float32)
    pixels[:height, :width] = 1
    blocks = pixels.reshape(h, PATCH, w, PATCH).transpose(0, 2, 1, 3).reshape(h, w, -1)
    return torch.from_numpy(np.tile(blocks, 3))
