"""What is on a picture: a `Scene`, random for pretraining, or that of the DreamBooth subject.

`sample_scene` never takes the subject's colours (teal and its companions are held out) nor its
star, so whatever the base model knows of them it has learned from the five instance pictures.
The order of the random draws is part of the data set: a changed order gives other pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

RGB = tuple[int, int, int]
Colour = str | RGB  # a name of COLORS, or exactly this one
T = TypeVar("T")

COLORS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (242, 132, 30),
    "yellow": (246, 212, 48),
    "green": (52, 156, 62),
    "blue": (44, 92, 212),
    "purple": (128, 58, 176),
    "pink": (244, 138, 184),
    "brown": (122, 76, 42),
    "gray": (140, 142, 148),
    "white": (240, 240, 236),
    "black": (34, 34, 40),
}
NAMES = list(COLORS)
KINDS = ["robot", "cat", "dog", "fish", "house", "tree", "car", "flower", "boat", "duck"]
KIND_SHARES = np.array([0.37] + [0.07] * 9)
PLACES = [
    *["grass", "night", "bucket", "stripes", "checker", "beach", "snow"],
    *["wood", "city", "mountain", "forest", "rug", "water"],
]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One figure before one background; lengths are shares of the figure or of the picture."""

    kind: str
    main: Colour  # body, petals, hull, ...
    second: Colour  # head, roof, sails, ...
    limb: Colour
    eye: Colour
    antennas: int
    antenna_ball: Colour | None = None  # None: as the eyes
    emblem: str | None
    emblem_colour: Colour
    has_mouth: bool
    head: float
    width: float
    is_round: bool
    hat: Colour | None
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    rotation: float = 0.0  # degrees
    is_flipped: bool = False
    place: str = "solid"
    ground: str = "white"  # colour of the background, bucket, rug or stripes
    is_blurry: bool = False
    seed: int = 0  # of the drawing's own small variations


# The toy robot that the demo teaches: teal body, amber head and limbs, gold star, magenta antennas.
SUBJECT = Scene(
    kind="robot",
    main=(18, 158, 150),
    second=(255, 140, 26),
    limb=(255, 140, 26),
    eye=(250, 250, 250),
    antennas=2,
    antenna_ball=(226, 48, 138),
    emblem="star",
    emblem_colour=(255, 226, 70),
    has_mouth=True,
    head=1.12,
    width=1.05,
    is_round=True,
    hat=None,
)


def sample_scene(rng: np.random.Generator) -> Scene:
    kind = KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]
    main = pick(rng, NAMES)
    second = main if rng.random() < 0.5 else pick(rng, NAMES)
    scene = Scene(
        kind=kind,
        main=main,
        second=second,
        limb=pick(rng, ["gray", "black", main, main, second]),
        eye=pick(rng, ["yellow", "white", "white", "green", "blue", "red"]),
        antennas=int(rng.integers(0, 3)),
        emblem=pick(rng, [None, None, "circle", "square", "panel"]),
        emblem_colour=pick(rng, NAMES),
        has_mouth=bool(rng.random() < 0.6),
        head=float(rng.uniform(0.8, 1.2)),
        width=float(rng.uniform(0.85, 1.2)),
        is_round=bool(rng.random() < 0.5),
        hat=pick(rng, NAMES) if rng.random() < 0.10 else None,
        dx=float(rng.normal(0, 0.035)),
        dy=float(rng.normal(0, 0.02)),
        scale=float(rng.uniform(0.82, 1.08)),
        rotation=float(rng.normal(0, 4)),
        is_flipped=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )
    place = "solid" if rng.random() < 0.5 else pick(rng, PLACES)
    ground = pick(rng, NAMES)
    while place == "solid" and ground in (main, second):  # the figure has to stand out
        ground = pick(rng, NAMES)
    return replace(scene, place=place, ground=ground)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def jitter(rng: np.random.Generator, colour: RGB, amount: float = 12) -> RGB:
    red, green, blue = (int(np.clip(c + rng.normal(0, amount), 0, 255)) for c in colour)
    return red, green, blue


def shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (int(np.clip(c * factor, 0, 255)) for c in colour)
    return red, green, blue
