"""The drawn pictures: the shipped ones again, bit for bit, and what pretraining must never show."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.captions import caption
from builder.pictures import instance_pictures, sample_photo
from builder.scenes import SUBJECT, Scene, sample_scene


def test_the_builder_draws_the_shipped_instance_pictures_bit_for_bit(mini_sdxl: Path) -> None:
    shipped = [np.asarray(Image.open(p)) for p in sorted((mini_sdxl / "instance").glob("*.png"))]
    drawn = [np.asarray(picture) for picture in instance_pictures()]
    assert [d.shape for d in drawn] == [s.shape for s in shipped]
    assert all(np.array_equal(d, s) for d, s in zip(drawn, shipped, strict=True))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(2000)]


def test_pretraining_never_shows_the_subject(scenes: list[Scene]) -> None:
    taken = {c for s in scenes for c in (s.main, s.second, s.limb, s.eye, s.emblem_colour)}
    assert taken.isdisjoint({SUBJECT.main, SUBJECT.second, SUBJECT.emblem_colour, "teal"})
    assert SUBJECT.emblem not in {scene.emblem for scene in scenes}


def test_captions_never_say_the_demos_word(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    words = {word for scene in scenes for word in caption(scene, rng).split()}
    assert "robot" in words
    assert words.isdisjoint({"sks", "teal", "star"})


@pytest.mark.parametrize("seed", range(8))
def test_a_photo_fits_its_time_ids(seed: int) -> None:
    picture, _, (height, width, top, left, *target) = sample_photo(np.random.default_rng(seed))
    assert picture.size == (64, 64)
    assert target == [64, 64]
    scale = 64 / min(height, width)
    assert 0 <= top <= height * scale - 63
    assert 0 <= left <= width * scale - 63
