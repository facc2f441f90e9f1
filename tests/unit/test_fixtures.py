"""What the shared fixtures promise to the tests that use them."""

from pathlib import Path

import numpy as np
import pytest
from photographs import EXIF_ORIENTATION, FILES, STORED, save_turned
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from tiny_sdxl import WEIGHTS, write_tiny_pipeline


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_photograph_is_upright_again_by_its_exif(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    save_turned(Image.fromarray(pixels), tmp_path / "photo.png", orientation)
    with Image.open(tmp_path / "photo.png") as opened:
        assert opened.getexif()[EXIF_ORIENTATION] == orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened)), pixels)


def test_photographs_differ_in_size_and_orientation(photographs: Path) -> None:
    opened = [Image.open(photographs / name) for name, *_ in FILES]
    assert len({image.size for image in opened}) == len(FILES)
    assert {image.getexif()[EXIF_ORIENTATION] for image in opened} == {1, 2, 3, 6, 8}


def test_equal_seeds_write_equal_pipelines(tiny_pipeline: Path, tmp_path: Path) -> None:
    again = write_tiny_pipeline(tmp_path / "again")
    other = write_tiny_pipeline(tmp_path / "other", seed=1)
    for part, name in WEIGHTS.items():
        first = (tiny_pipeline / part / name).read_bytes()
        assert first == (again / part / name).read_bytes()
        assert first != (other / part / name).read_bytes()


def test_the_tiny_pipeline_is_tiny(tiny_pipeline: Path) -> None:
    weights = [load_file(tiny_pipeline / part / name) for part, name in WEIGHTS.items()]
    assert sum(value.size for part in weights for value in part.values()) < 500_000
