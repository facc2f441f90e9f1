"""What a figure stands before: a plain colour, or one of thirteen places.

Each place is one function of `GROUNDS`. All but those that repaint it have the same sky; `horizon`
is the row where the floor begins.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .scenes import RGB, jitter, shade

PLANK_GAP = (112, 70, 38)
LIGHT_TILE = (238, 236, 230)


class Backdrop:
    def __init__(
        self, size: tuple[int, int], horizon: int, colour: RGB, rng: np.random.Generator
    ) -> None:
        self.width, self.height = size
        self.horizon, self.colour, self.rng = horizon, colour, rng
        top = self.tint((120, 180, 236))
        self.image = gradient(self.width, self.height, top, self.tint((206, 230, 248)))
        self.draw = ImageDraw.Draw(self.image)

    def tint(self, colour: RGB, amount: float = 8) -> RGB:
        return jitter(self.rng, colour, amount)

    def fill(self, top: RGB, bottom: RGB) -> None:
        self.image.paste(gradient(self.width, self.height, top, bottom), (0, 0))

    def floor(self, top: RGB, bottom: RGB, start: int | None = None) -> None:
        start = self.horizon if start is None else start
        self.image.paste(gradient(self.width, self.height - start, top, bottom), (0, start))

    def disc(self, x: float, y: float, radius: float, colour: RGB) -> None:
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def draw_background(
    place: str, size: tuple[int, int], colour: RGB, rng: np.random.Generator
) -> Image.Image:
    horizon = int(size[1] * rng.uniform(0.58, 0.68))
    backdrop = Backdrop(size, horizon, colour, rng)
    if place == "solid":
        top = shade(colour, rng.uniform(0.92, 1.08))
        return gradient(*size, top, shade(colour, rng.uniform(0.88, 1.04)))
    GROUNDS[place](backdrop)
    return backdrop.image


def gradient(width: int, height: int, top: RGB, bottom: RGB) -> Image.Image:
    down = np.linspace(0, 1, height)[:, None, None]
    rows = (1 - down) * np.array(top) + down * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))


def grass(b: Backdrop) -> None:
    b.floor(b.tint((110, 190, 80)), b.tint((60, 140, 50)))
    for _ in range(60):
        x, y = b.rng.integers(0, b.width), b.rng.integers(b.horizon, b.height)
        tip = (x + b.rng.integers(-6, 7), y - b.rng.integers(8, 18))
        b.draw.line([(x, y), tip], fill=b.tint((50, 130, 44), 20), width=3)


def night(b: Backdrop) -> None:
    b.fill(b.tint((10, 12, 40), 4), b.tint((30, 34, 84), 5))
    for _ in range(24):
        x, y = b.rng.integers(0, b.width), b.rng.integers(0, b.horizon)
        b.disc(x, y, b.rng.uniform(1, 2.6), (250, 250, 220))
    b.disc(b.width * b.rng.choice([0.16, 0.84]), b.height * 0.16, b.height * 0.09, (250, 244, 196))
    b.floor(b.tint((24, 26, 44), 4), b.tint((16, 18, 34), 4))


def bucket(b: Backdrop) -> None:
    b.fill(b.tint((226, 222, 214)), b.tint((196, 190, 182)))
    b.floor(b.tint((170, 150, 130)), b.tint((140, 120, 100)), int(b.height * 0.75))


def stripes(b: Backdrop) -> None:
    pale_room(b)
    columns = 8
    step = b.width / columns
    b.draw.rectangle([0, b.horizon, b.width, b.height], fill=LIGHT_TILE)
    for i in range(-columns, 2 * columns, 2):
        left = b.width / 2 + (i - columns / 2) * step
        right = b.width / 2 + (i + 1 - columns / 2) * step
        near = [b.width / 2 + (x - b.width / 2) * 1.8 for x in (right, left)]
        far = [(left, b.horizon), (right, b.horizon)]
        b.draw.polygon([*far, *((x, b.height) for x in near)], fill=b.colour)


def checker(b: Backdrop) -> None:
    pale_room(b)
    columns, rows = 8, 3
    step, depth = b.width / columns, b.height - b.horizon
    for row in range(rows):
        top, bottom = b.horizon + depth * row / rows, b.horizon + depth * (row + 1) / rows
        for i in range(-1, columns + 1):
            tile = b.colour if (i + row) % 2 else LIGHT_TILE
            b.draw.rectangle([i * step, top, (i + 1) * step, bottom], fill=tile)


def pale_room(b: Backdrop) -> None:
    b.fill(b.tint((228, 224, 214)), b.tint((214, 208, 198)))


def beach(b: Backdrop) -> None:
    sea = gradient(b.width, b.height // 4, b.tint((40, 130, 190)), b.tint((80, 180, 210)))
    b.image.paste(sea, (0, b.horizon - b.height // 5))
    b.floor(b.tint((240, 220, 160)), b.tint((222, 194, 130)))
    b.disc(b.width * b.rng.choice([0.14, 0.86]), b.height * 0.14, b.height * 0.08, (255, 236, 120))


def snow(b: Backdrop) -> None:
    b.fill(b.tint((176, 196, 220)), b.tint((214, 226, 240)))
    b.floor((250, 251, 254), (226, 234, 246))
    for _ in range(40):
        x, y = b.rng.integers(0, b.width), b.rng.integers(0, b.height)
        b.disc(x, y, b.rng.uniform(2, 4), (255, 255, 255))


def wood(b: Backdrop) -> None:
    b.fill(b.tint((232, 226, 210)), b.tint((220, 210, 196)))
    b.floor(b.tint((184, 128, 76)), b.tint((150, 98, 54)))
    for i in range(1, 4):
        y = b.horizon + (b.height - b.horizon) * i / 4
        b.draw.line([(0, y), (b.width, y)], fill=PLANK_GAP, width=3)
    b.draw.line([(0, b.horizon), (b.width, b.horizon)], fill=PLANK_GAP, width=4)


def city(b: Backdrop) -> None:
    b.floor(b.tint((120, 120, 124)), b.tint((92, 92, 98)))
    x = -4
    while x < b.width:
        width = int(b.rng.integers(22, 40))
        height = int(b.rng.integers(int(b.height * 0.25), int(b.height * 0.55)))
        wall = b.tint((110, 116, 136), 18)
        b.draw.rectangle([x, b.horizon - height, x + width, b.horizon], fill=wall)
        for window_y in range(b.horizon - height + 6, b.horizon - 6, 14):
            for window_x in range(x + 5, x + width - 6, 11):
                lit = (246, 226, 130) if b.rng.random() < 0.6 else shade(wall, 0.7)
                b.draw.rectangle([window_x, window_y, window_x + 5, window_y + 6], fill=lit)
        x += width + 3


def mountain(b: Backdrop) -> None:
    for _ in range(3):
        x = b.rng.uniform(0, b.width)
        half, tall = b.rng.uniform(0.3, 0.5) * b.width, b.rng.uniform(0.35, 0.5) * b.height
        peak = (x, b.horizon - tall)
        rock = b.tint((116, 120, 140), 10)
        b.draw.polygon([(x - half, b.horizon), (x + half, b.horizon), peak], fill=rock)
        line = b.horizon - tall * 0.7
        cap = [(x - half * 0.3, line), (x + half * 0.3, line), peak]
        b.draw.polygon(cap, fill=(246, 248, 252))
    b.floor(b.tint((120, 160, 90)), b.tint((90, 130, 70)))


def forest(b: Backdrop) -> None:
    b.fill(b.tint((70, 120, 80)), b.tint((40, 84, 50)))
    for _ in range(9):
        x, half = b.rng.uniform(0, b.width), b.rng.uniform(14, 26)
        trunk = [x - 4, b.horizon - b.height * 0.3, x + 4, b.horizon]
        b.draw.rectangle(trunk, fill=(76, 52, 32))
        for level in range(3):
            y = b.horizon - b.height * (0.12 + 0.16 * level)
            crown = [(x - half, y), (x + half, y), (x, y - b.height * 0.28)]
            b.draw.polygon(crown, fill=b.tint((26, 92, 44), 10))
    b.floor(b.tint((86, 100, 52)), b.tint((66, 76, 40)))


def rug(b: Backdrop) -> None:
    b.fill(b.tint((230, 222, 206)), b.tint((214, 204, 188)))
    b.floor(b.tint((176, 140, 104)), b.tint((150, 114, 80)), int(b.height * 0.6))
    box = [b.width * 0.04, b.height * 0.70, b.width * 0.96, b.height * 1.04]
    b.draw.ellipse(box, fill=b.colour, outline=shade(b.colour, 0.7), width=5)


def water(b: Backdrop) -> None:
    b.floor(b.tint((70, 150, 214)), b.tint((30, 96, 176)), int(b.height * 0.5))
    for _ in range(14):
        x, y = b.rng.uniform(-10, b.width), b.rng.uniform(b.height * 0.54, b.height)
        b.draw.arc([x, y, x + 26, y + 12], 200, 340, fill=(190, 226, 248), width=3)


GROUNDS: dict[str, Callable[[Backdrop], None]] = {
    "grass": grass,
    "night": night,
    "bucket": bucket,
    "stripes": stripes,
    "checker": checker,
    "beach": beach,
    "snow": snow,
    "wood": wood,
    "city": city,
    "mountain": mountain,
    "forest": forest,
    "rug": rug,
    "water": water,
}
