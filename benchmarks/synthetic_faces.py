"""Synthetic faces, drawn from random numbers: sample data for demonstrations, tests and benchmarks.

    python benchmarks/synthetic_faces.py DIRECTORY COUNT

They show nobody, so they can be made anywhere, and kept in any repository. A face is a handful of ellipses and polygons
with random proportions and colours, shaded, blurred and given some noise, so that it compresses roughly as a small
photograph does. The same seed gives the same faces with the same versions of NumPy and Pillow.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

_SKINS: tuple[Colour, ...] = (
    (246, 214, 192), (236, 193, 164), (222, 171, 137), (198, 142, 106), (161, 107, 74), (122, 78, 53), (88, 56, 40),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (28, 22, 20), (52, 36, 26), (84, 56, 34), (122, 82, 46), (176, 132, 78), (216, 184, 128), (142, 62, 34),
    (168, 166, 164),
)  # fmt: skip
_IRISES: tuple[Colour, ...] = ((72, 46, 28), (50, 34, 24), (96, 120, 140), (98, 118, 78), (122, 92, 54))
_CLOTHES: tuple[Colour, ...] = (
    (34, 40, 58), (196, 60, 58), (58, 96, 150), (230, 226, 218), (60, 110, 84), (128, 84, 132), (212, 170, 70),
    (40, 40, 42),
)  # fmt: skip
_BACKGROUNDS: tuple[Colour, ...] = (
    (198, 206, 212), (120, 140, 158), (92, 112, 88), (176, 148, 122), (60, 62, 72), (226, 214, 196), (142, 96, 92),
    (96, 134, 160),
)  # fmt: skip

_OVERSAMPLING = 4
"""Faces are drawn this many times larger and shrunk, which smooths their edges."""

_MTIME_S = 1_600_000_000
"""Modification time of every file, so that archives of drawn faces repeat byte for byte."""


def draw_faces(directory: Path, count: int, size: int = 42, seed: int = 0) -> None:
    """Write `count` JPEG files of size x size pixels, face_00000.jpg and on, into a directory that is made if need be.

    Quality 75 with chroma at half resolution, like the data sets of face crops they stand in for.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = directory / f"face_{index:05d}.jpg"
        draw_face(np.random.default_rng([seed, index]), size).save(path, "JPEG", quality=75, subsampling=2)
        os.utime(path, (_MTIME_S, _MTIME_S))


def draw_face(rng: np.random.Generator, size: int) -> Image.Image:
    """One RGB image of size x size pixels."""
    sketch = _Sketch(size * _OVERSAMPLING, _Person.at_random(rng))
    sketch.draw(rng)
    return _develop(sketch.image, size, rng)


def _blend(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    mixed = [round(x + (y - x) * share) for x, y in zip(a, b, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


@dataclass(frozen=True)
class _Person:
    """Proportions in units of the image's side, colours, and what the person wears."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    background: tuple[Colour, Colour]
    centre: tuple[float, float]
    head: tuple[float, float]
    """Half width and half height of the head."""
    eye_gap: float
    eye_size: float
    brow_lift: float
    smile: float
    mouth_width: float
    nose_length: float
    fringe: float
    parting: float
    hair_length: float
    """0 for none; above 1 the hair falls beside the neck."""
    has_beard: bool
    has_glasses: bool
    look: float

    @staticmethod
    def at_random(rng: np.random.Generator) -> _Person:
        def pick(colours: tuple[Colour, ...], spread: float = 0.35) -> Colour:
            first, second = rng.integers(len(colours), size=2)
            return _blend(colours[first], colours[second], float(rng.uniform(0, spread)))

        skin_index = float(rng.uniform(0, len(_SKINS) - 1.001))
        skin = _blend(_SKINS[int(skin_index)], _SKINS[int(skin_index) + 1], skin_index % 1)
        hair_length = float(rng.choice([0.0, 0.45, 0.7, 1.2, 1.5], p=[0.06, 0.24, 0.24, 0.23, 0.23]))
        return _Person(
            skin=skin,
            hair=_HAIRS[int(rng.integers(3))] if skin_index > 3.5 and rng.random() < 0.8 else pick(_HAIRS),
            iris=pick(_IRISES),
            clothes=pick(_CLOTHES),
            background=(pick(_BACKGROUNDS), pick(_BACKGROUNDS)),
            centre=(float(rng.normal(0.5, 0.012)), float(rng.normal(0.5, 0.012))),
            head=(float(rng.uniform(0.235, 0.285)), float(rng.uniform(0.325, 0.37))),
            eye_gap=float(rng.uniform(0.105, 0.13)),
            eye_size=float(rng.uniform(0.044, 0.058)),
            brow_lift=float(rng.uniform(0.055, 0.08)),
            smile=float(rng.uniform(-0.2, 1.0)),
            mouth_width=float(rng.uniform(0.085, 0.13)),
            nose_length=float(rng.uniform(0.11, 0.145)),
            fringe=float(rng.uniform(0.1, 0.55)),
            parting=float(rng.uniform(-0.6, 0.6)),
            hair_length=hair_length,
            has_beard=hair_length < 1 and bool(rng.random() < 0.3),
            has_glasses=bool(rng.random() < 0.16),
            look=float(rng.normal(0, 0.15)),
        )


class _Sketch:
    """A canvas with its origin in the middle of the face and the image's side as its unit."""

    def __init__(self, side: int, person: _Person):
        self.image = Image.new("RGB", (side, side))
        self._side = side
        self._draw = ImageDraw.Draw(self.image)
        self._person = person

    def _xy(self, x: float, y: float) -> tuple[float, float]:
        return (self._person.centre[0] + x) * self._side, (self._person.centre[1] + y) * self._side

    def _ellipse(self, x: float, y: float, half_width: float, half_height: float, colour: Colour) -> None:
        box = [self._xy(x - half_width, y - half_height), self._xy(x + half_width, y + half_height)]
        self._draw.ellipse(box, colour)

    def _polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([self._xy(x, y) for x, y in points], colour)

    def _curve(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        pixels = max(1, round(width * self._side))
        self._draw.line([self._xy(x, y) for x, y in points], colour, pixels, joint="curve")

    def _soft(self, x: float, y: float, half_width: float, half_height: float, colour: Colour, strength: float) -> None:
        """An ellipse that fades out towards its edge."""
        left, top = (int(value) for value in self._xy(x - half_width, y - half_height))
        columns, rows = (max(2, round(2 * half * self._side)) for half in (half_width, half_height))
        down = np.linspace(-1, 1, rows)[:, None]
        across = np.linspace(-1, 1, columns)[None, :]
        fade = np.clip(1 - down * down - across * across, 0, 1) * (255 * strength)
        self.image.paste(colour, (left, top, left + columns, top + rows), Image.fromarray(fade.astype(np.uint8)))

    def draw(self, rng: np.random.Generator) -> None:
        self._draw_background(rng)
        self._draw_body()
        self._draw_head()
        for side in (-1, 1):
            self._draw_eye(side)
        self._draw_nose()
        self._draw_mouth()
        self._draw_hair()
        if self._person.has_glasses:
            self._draw_glasses()

    def _draw_background(self, rng: np.random.Generator) -> None:
        first, second = (np.array(colour, np.float64) for colour in self._person.background)
        angle = rng.uniform(0, np.pi)
        y, x = np.mgrid[0 : self._side, 0 : self._side] / self._side - 0.5
        share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
        self.image.paste(Image.fromarray((first + (second - first) * share).astype(np.uint8)))
        for _ in range(int(rng.integers(0, 7))):
            x0, y0 = rng.uniform(-0.6, 0.6, 2)
            radius = float(rng.uniform(0.04, 0.2))
            colour = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
            self._soft(float(x0), float(y0), radius, radius * float(rng.uniform(0.5, 2)), colour, 0.6)

    def _draw_body(self) -> None:
        person = self._person
        half_width, half_height = person.head
        if person.hair_length > 1:
            reach = half_height * (person.hair_length - 0.4)
            self._ellipse(0, -0.02, half_width * 1.2, half_height * 1.1, _shade(person.hair, 0.8))
            outer, inner = half_width * 1.2, half_width * 0.7
            for side in (-1, 1):
                strand = [(outer, -0.02), (outer * 1.05, reach), (inner, reach), (inner, -0.02)]
                self._polygon([(side * x, y) for x, y in strand], _shade(person.hair, 0.8))
        self._ellipse(0, half_height + 0.31, 0.47, 0.26, person.clothes)
        neck = half_width * 0.55
        shadow = _shade(person.skin, 0.72)
        base = half_height + 0.1
        self._polygon([(-neck, 0.15), (neck, 0.15), (neck * 1.1, base), (-neck * 1.1, base)], shadow)
        self._ellipse(0, half_height + 0.09, neck * 1.2, 0.055, shadow)

    def _draw_head(self) -> None:
        person = self._person
        half_width, half_height = person.head
        for side in (-1, 1):
            self._ellipse(side * half_width * 0.98, 0.02, 0.035, 0.065, _shade(person.skin, 0.84))
        self._ellipse(0, -0.04, half_width, half_height * 0.88, person.skin)
        jaw = half_width * 0.9
        chin = half_height * 0.98
        outline = [(-half_width, -0.03), (-jaw, 0.14), (-jaw * 0.62, chin * 0.86), (-0.05, chin)]
        self._polygon([*outline, *((-x, y) for x, y in reversed(outline))], person.skin)
        self._ellipse(0, chin * 0.84, jaw * 0.62, chin * 0.17, person.skin)
        rosy = _blend(person.skin, (214, 80, 70), 0.35)
        for side in (-1, 1):
            self._soft(side * half_width * 0.56, 0.1, 0.1, 0.08, rosy, 0.5)
            self._soft(side * half_width * 0.8, 0.05, half_width * 0.17, 0.22, _shade(person.skin, 0.72), 0.5)
        self._soft(0, -half_height * 0.5, half_width * 0.7, 0.1, _shade(person.skin, 1.12), 0.6)
        if person.has_beard:
            stubble = _blend(person.skin, person.hair, 0.65)
            self._soft(0, chin * 0.84, jaw * 0.72, chin * 0.2, stubble, 1.0)
            self._soft(0, chin * 0.62, jaw * 0.8, chin * 0.3, stubble, 1.0)

    def _draw_eye(self, side: int) -> None:
        person = self._person
        x, y, size = side * person.eye_gap, -0.03, person.eye_size
        self._soft(x, y - 0.005, size * 1.5, size * 1.05, _shade(person.skin, 0.78), 0.6)
        self._ellipse(x, y, size, size * 0.52, (238, 234, 230))
        pupil_x = x + person.look * size
        self._ellipse(pupil_x, y, size * 0.5, size * 0.5, person.iris)
        self._ellipse(pupil_x, y, size * 0.25, size * 0.25, (14, 12, 12))
        self._ellipse(pupil_x - size * 0.16, y - size * 0.18, size * 0.12, size * 0.12, (250, 250, 250))
        lid = [(x + size * t, y - size * 0.56 * (1 - t * t)) for t in np.linspace(-1.08, 1.08, 9)]
        self._curve(lid, 0.016, _shade(_blend(person.skin, person.hair, 0.55), 0.6))
        brow_y = y - person.brow_lift
        brow = [(x + side * 0.07 * t, brow_y - 0.016 * (1 - t * t) + 0.008 * t) for t in np.linspace(-1, 1, 7)]
        self._curve(brow, 0.02, _blend(person.skin, _shade(person.hair, 0.8), 0.8))

    def _draw_nose(self) -> None:
        person = self._person
        tip = -0.02 + person.nose_length
        self._soft(-0.018, tip * 0.5, 0.022, person.nose_length * 0.5, _shade(person.skin, 0.85), 0.5)
        self._soft(0.008, tip * 0.5, 0.014, person.nose_length * 0.48, _shade(person.skin, 1.12), 0.6)
        self._soft(0, tip + 0.005, 0.05, 0.025, _shade(person.skin, 0.8), 0.6)
        for side in (-1, 1):
            self._ellipse(side * 0.022, tip + 0.012, 0.011, 0.007, _shade(person.skin, 0.5))

    def _draw_mouth(self) -> None:
        person = self._person
        y, half_width = 0.195, person.mouth_width
        lips = _blend(_shade(person.skin, 0.8), (176, 50, 60), 0.5)
        steps = np.linspace(-1, 1, 15)
        lift = 0.035 * person.smile
        upper = [(half_width * t, y - 0.024 * (1 - t * t) - lift * t * t + 0.006 * (abs(t) < 0.1)) for t in steps]
        lower = [(half_width * t, y + 0.036 * (1 - t * t) - lift * t * t) for t in steps]
        self._polygon([*upper, *reversed(lower)], lips)
        if person.smile > 0.45:
            inner = [(half_width * 0.78 * t, y - 0.006 - lift * t * t * 0.6) for t in steps]
            edge = [(half_width * 0.78 * t, y + 0.02 * (1 - t * t) - lift * t * t * 0.6) for t in steps]
            self._polygon([*inner, *reversed(edge)], (240, 236, 228))
        else:
            self._curve([(half_width * 0.92 * t, y - lift * t * t) for t in steps], 0.009, _shade(lips, 0.55))
        self._soft(0, y + 0.062, half_width * 0.5, 0.014, _shade(person.skin, 0.78), 0.6)

    def _draw_hair(self) -> None:
        person = self._person
        if person.hair_length == 0:
            return
        half_width, half_height = person.head
        outer = half_width * (1.06 + 0.06 * min(person.hair_length, 1))
        top = -0.04 - half_height * 1.0
        low = -0.02 + 0.1 * min(person.hair_length, 1)
        steps = np.linspace(-1, 1, 25)
        crown = [(outer * np.sin(t * np.pi / 2), low + (top - low) * np.cos(t * np.pi / 2) ** 0.8) for t in steps]
        hairline_y = -half_height * 0.62
        drop = person.fringe * 0.16
        hairline = []
        for t in steps:
            y = hairline_y + drop * abs(t - person.parting) / (1 + abs(person.parting))
            side = max(0.0, abs(t) - 0.78) / 0.22
            hairline.append((half_width * 0.93 * t, y + (low - y) * side**2))
        self._polygon([*crown, *reversed(hairline)], person.hair)
        for share in np.linspace(0.2, 0.8, 4):
            pairs = zip(crown, hairline, strict=True)
            strand = [(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share) for (x0, y0), (x1, y1) in pairs]
            self._curve(strand[4:-4], 0.012, _shade(person.hair, 0.88 if share < 0.5 else 1.12))

    def _draw_glasses(self) -> None:
        person = self._person
        frame, radius, y = (38, 34, 36), person.eye_size * 1.55, -0.025
        width = round(0.012 * self._side)
        for side in (-1, 1):
            x = side * person.eye_gap
            box = [self._xy(x - radius, y - radius * 0.8), self._xy(x + radius, y + radius * 0.8)]
            self._draw.ellipse(box, outline=frame, width=width)
            self._curve([(x + side * radius, y), (side * person.head[0], y - 0.015)], 0.012, frame)
        self._curve([(radius - person.eye_gap, y), (person.eye_gap - radius, y)], 0.012, frame)


def _develop(sketch: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Sketch -> photograph: tilt, light from one side, a lens that is not quite sharp, and a sensor's noise."""
    tilt = float(rng.normal(0, 4))
    side = sketch.width
    # mirrored borders fill the corners that turning leaves empty
    margin = side // 8
    padded = np.pad(np.asarray(sketch), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(tilt, Image.Resampling.BICUBIC)
    framed = turned.crop((margin, margin, margin + side, margin + side))
    blurred = framed.filter(ImageFilter.GaussianBlur(_OVERSAMPLING * float(rng.uniform(0.12, 0.4))))
    small = np.asarray(blurred.resize((size, size), Image.Resampling.LANCZOS), np.float64)
    return Image.fromarray(_expose(small, rng))


def _expose(pixels: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) in 0..255 -> uint8, with a gradient of light, a colour cast, contrast and noise."""
    height, width, _ = pixels.shape
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width] / max(height, width) - 0.5
    light = 1 + rng.uniform(0.05, 0.4) * (x * np.cos(angle) + y * np.sin(angle))
    cast = rng.normal(1, 0.03, 3)
    exposed = (pixels - 128) * rng.uniform(0.85, 1.1) + 128 * rng.uniform(0.85, 1.12)
    noise = rng.normal(0, rng.uniform(1, 3.5), (height, width, 1)) + rng.normal(0, 1.2, (height, width, 3))
    return np.clip(exposed * light[..., None] * cast + noise, 0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    draw_faces(Path(sys.argv[1]), int(sys.argv[2]))
