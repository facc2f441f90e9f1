"""Scene -> picture: background, contact shadow, figure, light and a little sensor noise.

Drawn three times too large and reduced, which smooths the edges.
"""

import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .backgrounds import draw_background
from .figures import draw_figure
from .pen import Pen
from .scenes import COLORS, RGB, SUBJECT, Scene, jitter, sample_scene, shade

OVERSIZE = 3
SIZE = 64  # pixels, the model's native size
TimeIds = tuple[int, int, int, int, int, int]

# The five instance pictures: width, height, and how the subject stands there.
INSTANCE_SHOTS: tuple[tuple[int, int, Scene], ...] = tuple(
    (
        width,
        height,
        replace(
            SUBJECT, place=place, ground=ground, scale=scale, rotation=turn, dx=dx, seed=100 + i
        ),
    )
    for i, (width, height, place, ground, scale, turn, dx) in enumerate(
        (
            (128, 96, "wood", "brown", 0.98, 3, -0.02),
            (96, 128, "solid", "white", 1.02, -2, 0.0),
            (112, 160, "grass", "green", 1.00, 2, 0.02),
            (144, 144, "solid", "gray", 0.95, -4, 0.0),
            (160, 120, "beach", "yellow", 1.00, 0, 0.03),
        )
    )
)


def instance_pictures() -> list[Image.Image]:
    return [render(scene, width, height) for width, height, scene in INSTANCE_SHOTS]


def sample_photo(rng: np.random.Generator) -> tuple[Image.Image, Scene, TimeIds]:
    """A 64x64 training picture with SDXL's (original height, width, crop top, left, 64, 64).

    Two in five are cut out of an original that is larger or smaller and not square.
    """
    scene = sample_scene(rng)
    if rng.random() < 0.6:
        return render(scene), scene, (SIZE, SIZE, 0, 0, SIZE, SIZE)
    short, aspect = int(rng.integers(40, 193)), rng.uniform(1.0, 1.6)
    is_tall = rng.random() < 0.5
    width, height = (SIZE, int(SIZE * aspect)) if is_tall else (int(SIZE * aspect), SIZE)
    image = render(scene, width, height)
    factor = short / SIZE
    original_height, original_width = round(height * factor), round(width * factor)
    if factor < 1:  # an original that small has lost its details
        small = image.resize((original_width, original_height), Image.Resampling.BILINEAR)
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        scene = replace(scene, is_blurry=factor < 0.85)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    if rng.random() < 0.6:
        top, left = int(rng.integers(0, height - SIZE + 1)), int(rng.integers(0, width - SIZE + 1))
    cut = image.crop((left, top, left + SIZE, top + SIZE))
    return cut, scene, (original_height, original_width, top, left, SIZE, SIZE)


def render(scene: Scene, width: int = SIZE, height: int = SIZE) -> Image.Image:
    rng = np.random.default_rng(scene.seed)
    size = (width * OVERSIZE, height * OVERSIZE)
    colour = jitter(rng, COLORS[scene.ground])
    image = draw_background(scene.place, size, colour, rng)
    middle, unit = placement(scene, size)
    figure = draw_turned_figure(scene, size, middle, unit, rng)
    if scene.place != "solid" or scene.seed % 2:
        draw_shadow(image, middle, unit)
    image.paste(figure, (0, 0), figure.getchannel("A"))
    if scene.place == "bucket":
        front = bucket_front(size, middle, unit, colour)
        image.paste(front, (0, 0), front.getchannel("A"))
    return expose(image.reduce(OVERSIZE), rng, is_night=scene.place == "night")


def placement(scene: Scene, size: tuple[int, int]) -> tuple[tuple[float, float], float]:
    """Middle of the figure and length of its unit, in pixels."""
    width, height = size
    unit = min(size) * 0.44 * scene.scale
    x = width * (0.5 + scene.dx)
    y = height * (0.52 + scene.dy) + (height - min(size)) * 0.12
    if scene.place == "bucket":
        y -= 0.12 * unit
    if scene.hat:
        unit *= 0.9
        y += 0.08 * unit
    return (x, y), unit


def draw_turned_figure(
    scene: Scene,
    size: tuple[int, int],
    middle: tuple[float, float],
    unit: float,
    rng: np.random.Generator,
) -> Image.Image:
    pen = Pen(size, middle, unit)
    draw_figure(pen, scene, rng)
    figure = pen.layer
    if scene.rotation:
        figure = figure.rotate(scene.rotation, resample=Image.Resampling.BILINEAR, center=middle)
    return figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if scene.is_flipped else figure


def draw_shadow(image: Image.Image, middle: tuple[float, float], unit: float) -> None:
    x, y = middle
    shadow = Image.new("L", image.size, 0)
    box = [x - 0.6 * unit, y + 0.84 * unit, x + 0.6 * unit, y + 1.06 * unit]
    ImageDraw.Draw(shadow).ellipse(box, fill=90)
    image.paste((20, 20, 26), (0, 0), shadow.filter(ImageFilter.BoxBlur(5)))


def bucket_front(
    size: tuple[int, int], middle: tuple[float, float], unit: float, colour: RGB
) -> Image.Image:
    pen = Pen(size, middle, unit)
    pen.polygon([(-0.78, 0.30), (0.78, 0.30), (0.60, 1.08), (-0.60, 1.08)], colour)
    pen.rectangle(-0.84, 0.22, 0.84, 0.38, shade(colour, 0.88), 0.05)
    return pen.layer


def expose(image: Image.Image, rng: np.random.Generator, *, is_night: bool) -> Image.Image:
    """Light that falls off to one side, an exposure, and noise."""
    pixels = np.asarray(image, np.float32)  # (H, W, 3)
    height, width, _ = pixels.shape
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * math.pi)
    slope = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)
    ramp = slope * rng.uniform(0, 0.25)
    gain = rng.uniform(0.93, 1.05) * (0.72 if is_night else 1.0)
    lit = pixels * (gain * (1 + ramp))[..., None]
    noisy = lit + rng.normal(0, rng.uniform(1, 4), pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
