"""The demo's two scores, against values of the scripts that the model was first measured with."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from builder.pictures import render, sample_photo
from builder.scenes import SUBJECT
from scores import prompt_score, score, subject_score


@pytest.mark.parametrize(
    ("seed", "colour", "subject", "prompt"),
    [
        (1, "red", 0.0, 0.0),
        (3, "green", 0.5, 1.0),  # an orange robot on green: all amber, no teal
        (13, "gray", 0.5, 0.16216216216216217),
        (21, "pink", 0.020453946465098467, 0.0),
        (36, "red", 0.0, 0.9774774774774775),
    ],
)
def test_scores_of_pretraining_pictures_are_the_recorded_ones(
    seed: int, colour: str, subject: float, prompt: float
) -> None:
    picture, _, _ = sample_photo(np.random.default_rng(seed))
    assert subject_score(picture) == pytest.approx(subject, abs=1e-12)
    assert prompt_score(picture, colour) == pytest.approx(prompt, abs=1e-12)


@pytest.mark.parametrize(
    ("colour", "seed", "subject"),
    [("red", 3, 0.999714174513995), ("gray", 4, 1.0), ("yellow", 5, 0.9700701133140123)],
)
def test_true_pictures_of_the_subject_score_near_one(
    colour: str, seed: int, subject: float
) -> None:
    picture = render(replace(SUBJECT, ground=colour, scale=0.9, rotation=3, seed=seed))
    assert subject_score(picture) == pytest.approx(subject, abs=1e-12)
    assert prompt_score(picture, colour) == 1.0


def test_an_empty_picture_holds_no_subject() -> None:
    assert subject_score(Image.new("RGB", (64, 64), (18, 158, 150))) == 0.0


def test_score_is_the_mean_over_pictures_each_with_its_own_colour() -> None:
    true = render(replace(SUBJECT, ground="gray", seed=4))
    empty = Image.new("RGB", (64, 64), "white")
    assert score([(true, "gray"), (empty, "red")]) == {
        "subject": subject_score(true) / 2,
        "prompt": 0.5,
    }
