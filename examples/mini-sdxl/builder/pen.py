"""A pen for outlined shapes, in figure units: x and y in [-1, 1] about the figure's middle, y down.

Every shape has a darker outline unless `outline=False`. Where nothing is drawn, the layer is
transparent.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .scenes import RGB, shade

Point = tuple[float, float]


class Pen:
    def __init__(self, size: tuple[int, int], middle: Point, unit: float) -> None:
        self.layer = Image.new("RGBA", size, (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.layer)
        self._middle, self._unit = middle, unit

    def ellipse(
        self, x0: float, y0: float, x1: float, y1: float, fill: RGB, outline: bool = True
    ) -> None:
        self._draw.ellipse(self._box(x0, y0, x1, y1), fill=fill, **self._edge(fill, outline))

    def disc(self, x: float, y: float, radius: float, fill: RGB, outline: bool = True) -> None:
        self.ellipse(x - radius, y - radius, x + radius, y + radius, fill, outline)

    def rectangle(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: RGB,
        corner: float = 0.0,
        outline: bool = True,
    ) -> None:
        self._draw.rounded_rectangle(
            self._box(x0, y0, x1, y1),
            radius=max(0.1, corner * self._unit),
            fill=fill,
            **self._edge(fill, outline),
        )

    def polygon(self, points: Sequence[Point], fill: RGB, outline: bool = True) -> None:
        corners = [self._pixel(*point) for point in points]
        self._draw.polygon(corners, fill=fill)
        if outline:
            edge = corners + corners[:2]
            self._draw.line(edge, fill=shade(fill, 0.55), width=self._stroke(), joint="curve")

    def line(self, points: Sequence[Point], fill: RGB, width: float = 0.05) -> None:
        path = [self._pixel(*point) for point in points]
        self._draw.line(path, fill=fill, width=self._stroke(width), joint="curve")

    def _pixel(self, x: float, y: float) -> Point:
        return self._middle[0] + x * self._unit, self._middle[1] + y * self._unit

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        return [*self._pixel(min(x0, x1), min(y0, y1)), *self._pixel(max(x0, x1), max(y0, y1))]

    def _stroke(self, width: float = 0.035) -> int:
        return max(1, round(width * self._unit))

    def _edge(self, fill: RGB, outline: bool) -> dict[str, RGB | int | None]:
        if not outline:
            return {"outline": None, "width": 0}
        return {"outline": shade(fill, 0.55), "width": self._stroke()}


def star(x: float, y: float, radius: float, points: int = 5, inner: float = 0.45) -> list[Point]:
    radii = [radius if i % 2 == 0 else radius * inner for i in range(2 * points)]
    angles = [i * math.pi / points for i in range(2 * points)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]
