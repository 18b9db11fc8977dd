"""Synthetic faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_faces import draw_faces

from zippy_batch.images.pixels import JpegTables, Picture, read_picture
from zippy_batch.sources.directory import list_files, read_file


def test_faces_are_small_jpegs_like_those_of_data_sets(tmp_path: Path) -> None:
    draw_faces(tmp_path / "new" / "faces", 6)
    listing = list_files(tmp_path / "new" / "faces")
    assert [file.path for file in listing.files] == [b"face_%05d.jpg" % i for i in range(6)]
    for file in listing.files:
        picture = read_picture(read_file(tmp_path / "new" / "faces", file))
        assert isinstance(picture, Picture)
        assert picture.pixels.shape == (42, 42, 3)
        assert picture.facts.jpeg_quality == 75
        assert picture.facts.jpeg_tables is not None
        assert JpegTables.from_bytes(picture.facts.jpeg_tables).sampling == ((2, 2), (1, 1), (1, 1))
        assert 600 < file.size_bytes < 1600


def test_seed_and_index_decide_a_face(tmp_path: Path) -> None:
    draw_faces(tmp_path / "a", 5, size=30, seed=7)
    draw_faces(tmp_path / "b", 3, size=30, seed=7)
    draw_faces(tmp_path / "c", 3, size=30, seed=8)
    listings = {name: list_files(tmp_path / name) for name in "abc"}
    assert listings["a"].files[:3] == listings["b"].files[:], "names, sizes and times repeat"
    for i in range(3):
        name = f"face_{i:05d}.jpg"
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()


def test_faces_differ_from_one_another(tmp_path: Path) -> None:
    draw_faces(tmp_path, 8, size=64)
    pictures = [read_picture((tmp_path / f"face_{i:05d}.jpg").read_bytes()) for i in range(8)]
    pixels = [picture.pixels.astype(int) for picture in pictures if isinstance(picture, Picture)]
    assert len(pixels) == 8
    for i in range(8):
        for j in range(i):
            assert np.abs(pixels[i] - pixels[j]).mean() > 8


def test_any_size_can_be_drawn(tmp_path: Path) -> None:
    for size in (1, 8, 21, 112):
        draw_faces(tmp_path / str(size), 1, size=size)
        picture = read_picture((tmp_path / str(size) / "face_00000.jpg").read_bytes())
        assert isinstance(picture, Picture)
        assert picture.pixels.shape[:2] == (size, size)
