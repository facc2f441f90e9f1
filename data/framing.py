"""How a picture is brought to the training size: resize, flip, crop, and what SDXL is told. Pure.

The short side is resized to the resolution, then the picture is flipped, then cropped; so `top`
and `left` count in the flipped picture, as in the known script. All sizes are (height, width) of
the upright picture. A picture's random crop is drawn from its content, so that a renamed or
repeated picture has the same one, in every run.
"""

from dataclasses import dataclass

from .errors import DataError
from .stream import Purpose, generator

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Frame:
    original_size: Size
    resized: Size
    flip: bool
    top: int
    left: int
    size: Size

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's micro-conditioning: original size, crop corner, target size; rows first."""
        return (*self.original_size, self.top, self.left, *self.size)

    @property
    def source_box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the kept part, in pixels of the unflipped picture."""
        down = self.original_size[0] / self.resized[0]
        across = self.original_size[1] / self.resized[1]
        left = self.resized[1] - self.left - self.size[1] if self.flip else self.left
        return (
            left * across,
            self.top * down,
            # Rounding must not carry the far edges out of the picture: Pillow refuses that.
            min((left + self.size[1]) * across, float(self.original_size[1])),
            min((self.top + self.size[0]) * down, float(self.original_size[0])),
        )


def frame(
    size: Size,
    *,
    resolution: int,
    center_crop: bool,
    flip: bool = False,
    draw: tuple[float, float] = (0.0, 0.0),
) -> Frame:
    """Fit a picture into a square; `draw`, in [0, 1), places a random crop (row, column)."""
    resized = _short_side_to(resolution, size)
    room = (resized[0] - resolution, resized[1] - resolution)
    if center_crop:
        corner = (round(room[0] / 2), round(room[1] / 2))
    else:
        corner = (int(draw[0] * (room[0] + 1)), int(draw[1] * (room[1] + 1)))
    return Frame(
        original_size=size,
        resized=resized,
        flip=flip,
        top=corner[0],
        left=corner[1],
        size=(resolution, resolution),
    )


def variants(
    size: Size, digest: str, *, resolution: int, center_crop: bool, random_flip: bool
) -> tuple[Frame, ...]:
    """Every frame of a picture that a run may use; which of them, each sample draws for itself.

    The crop is random but drawn from the content alone, not from the run's seed: every later run
    finds the picture in the cache.
    """
    row, column = generator(0, Purpose.CROP, int(digest, 16) >> 64).random(2)
    return tuple(
        frame(
            size,
            resolution=resolution,
            center_crop=center_crop,
            flip=flip,
            draw=(float(row), float(column)),
        )
        for flip in ((False, True) if random_flip else (False,))
    )


def _short_side_to(resolution: int, size: Size) -> Size:
    if resolution < 1:
        raise DataError(f"resolution is {resolution}: pass a positive number of pixels")
    height, width = size
    if width <= height:
        return int(resolution * height / width), resolution
    return resolution, int(resolution * width / height)
