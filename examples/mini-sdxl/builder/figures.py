"""The ten figures, each drawn by one function of `FIGURES`, which returns where a hat would sit.

Later shapes lie over earlier ones, so the order of the lines is the picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .pen import Pen, star
from .scenes import COLORS, RGB, Colour, Scene, jitter, shade

DARK = (30, 30, 34)
EYE_WHITE = (250, 250, 250)
WOOD = (104, 70, 40)


class Paint:
    """Colours as drawn: equal names vary equally, the subject's own ones vary less."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._named: dict[str, RGB] = {}

    def __call__(self, colour: Colour) -> RGB:
        if isinstance(colour, tuple):
            return jitter(self._rng, colour, 3)
        if colour not in self._named:
            self._named[colour] = jitter(self._rng, COLORS[colour])
        return self._named[colour]


@dataclass(frozen=True, kw_only=True)
class Look:
    scene: Scene
    main: RGB
    second: RGB
    limb: RGB
    paint: Paint
    rng: np.random.Generator

    @property
    def is_two_coloured(self) -> bool:
        return self.main != self.second


@dataclass(frozen=True, kw_only=True)
class HatPlace:
    y: float
    x: float = 0.0


def draw_figure(pen: Pen, scene: Scene, rng: np.random.Generator) -> None:
    paint = Paint(rng)
    main, second, limb = paint(scene.main), paint(scene.second), paint(scene.limb)
    look = Look(scene=scene, main=main, second=second, limb=limb, paint=paint, rng=rng)
    at = FIGURES[scene.kind](pen, look)
    if scene.hat:
        hat = paint(scene.hat)
        pen.rectangle(at.x - 0.24, at.y - 0.32, at.x + 0.24, at.y + 0.02, hat, 0.03)
        pen.rectangle(at.x - 0.42, at.y - 0.04, at.x + 0.42, at.y + 0.08, hat, 0.03)


def robot(pen: Pen, look: Look) -> HatPlace:
    scene = look.scene
    half, face = 0.40 * scene.width, 0.34 * scene.head
    corner = 0.14 if scene.is_round else 0.04
    for side in (-1, 1):
        pen.rectangle(side * 0.10, 0.50, side * 0.28, 0.86, look.limb, 0.03)
        pen.rectangle(side * 0.06, 0.82, side * 0.34, 0.96, shade(look.limb, 0.8), 0.04)
        pen.rectangle(side * half, -0.02, side * (half + 0.18), 0.46, look.limb, 0.08)
        hand = shade(look.limb, 0.8)
        pen.ellipse(side * (half - 0.01), 0.40, side * (half + 0.19), 0.60, hand)
    ball = look.paint(scene.eye if scene.antenna_ball is None else scene.antenna_ball)
    for x in ([], [0.0], [-0.2, 0.2])[scene.antennas]:
        pen.line([(x, -0.62), (x * 1.5, -0.86)], DARK, 0.05)
        pen.ellipse(x * 1.5 - 0.085, -0.97, x * 1.5 + 0.085, -0.80, ball)
    pen.rectangle(-half, -0.12, half, 0.56, look.main, corner)
    pen.rectangle(-face, -0.72, face, -0.14, look.second, corner)
    draw_eyes(pen, face * 0.48, -0.47, 0.105, white=look.paint(scene.eye))
    if scene.has_mouth:
        pen.rectangle(-face * 0.5, -0.29, face * 0.5, -0.21, DARK, 0.03, outline=False)
    draw_emblem(pen, scene.emblem, look.paint(scene.emblem_colour), half)
    return HatPlace(y=-0.66)


def draw_emblem(pen: Pen, emblem: str | None, colour: RGB, half: float) -> None:
    if emblem == "circle":
        pen.ellipse(-0.15, 0.06, 0.15, 0.36, colour)
    elif emblem == "square":
        pen.rectangle(-0.15, 0.06, 0.15, 0.36, colour, 0.01)
    elif emblem == "panel":
        pen.rectangle(-half * 0.7, 0.10, half * 0.7, 0.28, colour, 0.03)
    elif emblem == "star":
        pen.polygon(star(0, 0.22, 0.26), colour, outline=False)


def draw_eyes(pen: Pen, x: float, y: float, radius: float, *, white: RGB) -> None:
    for eye in (-x, x):
        pen.disc(eye, y, radius, white)
        pen.disc(eye, y, radius * 0.5, (20, 20, 24), outline=False)


def cat(pen: Pen, look: Look) -> HatPlace:
    draw_animal_body(pen, look)
    pen.line([(0.36, 0.75), (0.66, 0.60), (0.62, 0.25)], look.main, 0.11)
    for side in (-1, 1):
        ear = [(side * 0.46, -0.84), (side * 0.44, -0.30), (side * 0.10, -0.58)]
        pen.polygon(ear, look.main)
    draw_animal_head(pen, look)
    draw_eyes(pen, 0.19, -0.32, 0.10, white=(160, 220, 90))
    draw_nose(pen)
    for side in (-1, 1):
        pen.line([(side * 0.12, -0.06), (side * 0.5, -0.12)], DARK, 0.022)
        pen.line([(side * 0.12, -0.02), (side * 0.5, 0.04)], DARK, 0.022)
    return HatPlace(y=-0.58)


def dog(pen: Pen, look: Look) -> HatPlace:
    draw_animal_body(pen, look)
    pen.line([(0.36, 0.70), (0.62, 0.42)], look.main, 0.13)
    draw_animal_head(pen, look)
    for side in (-1, 1):
        pen.ellipse(side * 0.34, -0.60, side * 0.62, 0.06, shade(look.second, 0.72))
    muzzle = shade(look.second, 1.15) if look.is_two_coloured else (236, 220, 200)
    pen.ellipse(-0.22, -0.22, 0.22, 0.13, muzzle)
    draw_eyes(pen, 0.19, -0.32, 0.10, white=EYE_WHITE)
    draw_nose(pen)
    return HatPlace(y=-0.58)


def draw_animal_body(pen: Pen, look: Look) -> None:
    pen.ellipse(-0.42 * look.scene.width, 0.05, 0.42 * look.scene.width, 0.92, look.main)


def draw_animal_head(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.08, 0.78, side * 0.36, 0.97, shade(look.second, 0.95))
    pen.ellipse(-0.46, -0.66, 0.46, 0.16, look.main)


def draw_nose(pen: Pen) -> None:
    pen.polygon([(-0.08, -0.14), (0.08, -0.14), (0, -0.04)], (40, 30, 34), outline=False)


def fish(pen: Pen, look: Look) -> HatPlace:
    pen.polygon([(0.40, 0.0), (0.85, -0.38), (0.85, 0.38)], look.second)
    pen.polygon([(-0.15, -0.34), (0.30, -0.34), (0.12, -0.66)], look.second)
    pen.ellipse(-0.80, -0.44, 0.55, 0.44, look.main)
    pen.ellipse(-0.62, -0.24, -0.38, 0.0, EYE_WHITE)
    pen.ellipse(-0.54, -0.17, -0.44, -0.07, DARK, outline=False)
    pen.polygon([(-0.08, 0.05), (0.22, 0.22), (-0.02, 0.30)], look.second)
    if look.scene.is_round:
        for x in (-0.22, 0.02, 0.24):
            pen.line([(x, -0.30), (x + 0.05, 0.0), (x, 0.30)], shade(look.second, 0.7), 0.05)
    return HatPlace(y=-0.38, x=-0.1)


def house(pen: Pen, look: Look) -> HatPlace:
    pen.rectangle(-0.62, -0.10, 0.62, 0.92, look.main)
    roof = look.second if look.is_two_coloured else shade(look.main, 0.6)
    pen.rectangle(0.28, -0.78, 0.46, -0.30, shade(roof, 0.8))
    pen.polygon([(-0.80, -0.08), (0.80, -0.08), (0.0, -0.86)], roof)
    pen.rectangle(-0.15, 0.42, 0.15, 0.92, (104, 64, 36))
    pane = (250, 236, 150) if look.scene.is_round else (170, 214, 240)
    for side in (-1, 1):
        pen.rectangle(side * 0.26, 0.08, side * 0.50, 0.36, pane)
    return HatPlace(y=-0.74)


def tree(pen: Pen, look: Look) -> HatPlace:
    pen.rectangle(-0.12, 0.25, 0.12, 0.95, (110, 70, 38), 0.02)
    if look.scene.is_round:
        for x, y, radius in (
            (-0.32, 0.05, 0.36),
            (0.32, 0.05, 0.36),
            (0, -0.40, 0.44),
            (0, 0.02, 0.40),
        ):
            pen.disc(x, y, radius, look.main)
    else:
        for y, half in ((0.42, 0.64), (0.02, 0.54), (-0.36, 0.42)):
            pen.polygon([(-half, y), (half, y), (0, y - 0.58)], look.main)
    for _ in range(4 if look.is_two_coloured else 0):
        x, y = look.rng.uniform(-0.35, 0.35), look.rng.uniform(-0.45, 0.2)
        pen.disc(x, y, 0.07, look.second)
    return HatPlace(y=-0.84)


def car(pen: Pen, look: Look) -> HatPlace:
    glass = (184, 220, 240)
    pen.polygon([(-0.48, 0.05), (-0.30, -0.38), (0.30, -0.38), (0.52, 0.05)], look.second)
    pen.polygon([(-0.36, 0.02), (-0.23, -0.28), (-0.02, -0.28), (-0.02, 0.02)], glass)
    pen.polygon([(0.04, 0.02), (0.04, -0.28), (0.25, -0.28), (0.40, 0.02)], glass)
    pen.rectangle(-0.88, 0.02, 0.88, 0.46, look.main, 0.12)
    pen.ellipse(-0.88, 0.12, -0.72, 0.28, (252, 240, 160))
    for x in (-0.48, 0.48):
        pen.ellipse(x - 0.23, 0.26, x + 0.23, 0.72, DARK)
        pen.ellipse(x - 0.10, 0.39, x + 0.10, 0.59, (196, 198, 204))
    return HatPlace(y=-0.36)


def flower(pen: Pen, look: Look) -> HatPlace:
    leaf = (66, 160, 70)
    pen.line([(0, -0.1), (0.03, 0.95)], (54, 140, 60), 0.09)
    pen.ellipse(0.02, 0.42, 0.40, 0.62, leaf)
    pen.ellipse(-0.36, 0.52, 0.0, 0.72, leaf)
    petals = 6 if look.scene.is_round else 8
    for i in range(petals):
        angle = 2 * math.pi * i / petals
        pen.disc(0.36 * math.cos(angle), -0.30 + 0.36 * math.sin(angle), 0.22, look.main)
    centre = (250, 214, 60) if look.scene.main != "yellow" else (122, 76, 42)
    pen.ellipse(-0.22, -0.52, 0.22, -0.08, look.second if look.is_two_coloured else centre)
    return HatPlace(y=-0.80)


def boat(pen: Pen, look: Look) -> HatPlace:
    two = look.is_two_coloured
    pen.line([(0.0, 0.45), (0.0, -0.85)], WOOD, 0.06)
    front, back = (
        (look.second, shade(look.second, 0.9)) if two else ((244, 240, 230), (226, 224, 216))
    )
    pen.polygon([(0.05, -0.82), (0.05, 0.26), (0.62, 0.26)], front)
    pen.polygon([(-0.05, -0.62), (-0.05, 0.26), (-0.46, 0.26)], back)
    pen.polygon([(-0.85, 0.36), (0.85, 0.36), (0.58, 0.80), (-0.58, 0.80)], look.main)
    return HatPlace(y=-0.80)


def duck(pen: Pen, look: Look) -> HatPlace:
    pen.ellipse(-0.52, 0.05, 0.74, 0.80, look.main)
    pen.polygon([(0.55, 0.35), (0.92, 0.05), (0.70, 0.58)], look.main)
    pen.ellipse(0.0, 0.24, 0.50, 0.62, shade(look.second, 0.85))
    pen.ellipse(-0.66, -0.58, 0.06, 0.18, look.main)
    beak = (244, 140, 32) if look.scene.main != "orange" else (246, 212, 48)
    pen.polygon([(-0.62, -0.26), (-0.62, -0.04), (-0.94, -0.10)], beak)
    pen.ellipse(-0.48, -0.36, -0.28, -0.16, EYE_WHITE)
    pen.ellipse(-0.42, -0.31, -0.32, -0.21, DARK, outline=False)
    return HatPlace(y=-0.52, x=-0.30)


FIGURES: dict[str, Callable[[Pen, Look], HatPlace]] = {
    "robot": robot,
    "cat": cat,
    "dog": dog,
    "fish": fish,
    "house": house,
    "tree": tree,
    "car": car,
    "flower": flower,
    "boat": boat,
    "duck": duck,
}
