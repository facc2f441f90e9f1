"""Two numbers for 64x64 pictures of the demo's subject on a plain background.

subject  Of the figure's pixels (those unlike the border's median colour), the share that is teal
         and the share that is amber, each relative to a true picture of the subject and capped
         at 1; their mean. True pictures reach 0.97, or 0.81 after a round trip through the VAE.
prompt   The share of the border's pixels whose nearest named colour is the one asked for.

They measure colours only: a teal and amber blob scores as a robot does, so look at the pictures.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.pictures import render
from builder.scenes import COLORS, SUBJECT

BACKGROUNDS = ("red", "blue", "purple", "pink", "gray")  # of the prompts that are scored
REFERENCE_BACKGROUNDS = ("red", "blue", "purple", "pink", "white", "gray")
BORDER = 6  # pixels
BORDER_ROWS = 48  # the lowest quarter, where the feet stand, is left out
FEWEST_FIGURE_PIXELS = 40  # fewer are noise, not a figure

Pixels = NDArray[np.float32]


def score(pictures: Sequence[tuple[Image.Image, str]]) -> dict[str, float]:
    """The mean scores of pictures, each with the name of the background colour asked for."""
    return {
        "subject": float(np.mean([subject_score(picture) for picture, _ in pictures])),
        "prompt": float(np.mean([prompt_score(picture, colour) for picture, colour in pictures])),
    }


def subject_score(picture: Image.Image) -> float:
    shares = np.array(teal_and_amber(as_pixels(picture)))
    return float(np.mean(np.minimum(1, shares / reference_shares())))


def prompt_score(picture: Image.Image, colour: str) -> float:
    pixels = as_pixels(picture)
    border = pixels[border_mask(pixels)]  # (N, 3)
    palette = np.array(list(COLORS.values()), np.float32)  # (C, 3)
    nearest = ((border[:, None] - palette[None]) ** 2).sum(-1).argmin(1)
    return float((nearest == list(COLORS).index(colour)).mean())


@cache
def reference_shares() -> NDArray[np.float64]:
    """Teal and amber in true pictures of the subject."""
    scenes = [
        replace(SUBJECT, ground=colour, seed=i) for i, colour in enumerate(REFERENCE_BACKGROUNDS)
    ]
    return np.mean([teal_and_amber(as_pixels(render(scene))) for scene in scenes], axis=0)


def teal_and_amber(pixels: Pixels) -> tuple[float, float]:
    figure = pixels[figure_mask(pixels)]
    if len(figure) < FEWEST_FIGURE_PIXELS:
        return 0.0, 0.0
    hue, saturation, value = hue_saturation_value(figure)
    teal = (hue > 160) & (hue < 190) & (saturation > 0.45) & (value > 0.25)
    amber = (hue > 18) & (hue < 40) & (saturation > 0.55) & (value > 0.45)
    return float(teal.mean()), float(amber.mean())


def figure_mask(pixels: Pixels) -> NDArray[np.bool_]:
    background = np.median(pixels[border_mask(pixels)], axis=0)
    mask: NDArray[np.bool_] = np.abs(pixels - background).sum(-1) > 75
    return mask


def border_mask(pixels: Pixels) -> NDArray[np.bool_]:
    mask = np.zeros(pixels.shape[:2], bool)
    mask[:BORDER], mask[:, :BORDER], mask[:, -BORDER:] = True, True, True
    mask[BORDER_ROWS:] = False
    return mask


def hue_saturation_value(pixels: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Hue in degrees, the others in 0..1, of (N, 3) pixels in 0..255."""
    unit = pixels / 255.0
    most, least = unit.max(1), unit.min(1)
    spread = np.maximum(most - least, 1e-6)
    red, green, blue = unit.T
    sixths = np.where(
        most == red,
        (green - blue) / spread % 6,
        np.where(most == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return sixths * 60, (most - least) / np.maximum(most, 1e-6), most


def as_pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB"), np.float32)
