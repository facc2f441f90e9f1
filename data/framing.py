"""How a picture is brought to the training size: resize, flip, crop, and what SDXL is told. Pure.

The picture is resized until it just covers the target, then flipped, then cropped; so `top` and
`left` count in the flipped picture, as in the known script. All sizes are (height, width) of the
upright picture. A picture's random crops are drawn from its content, so that a renamed or repeated
picture has the same ones, in every run.
"""

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

Size = tuple[int, int]
_pairs = struct.Struct("<II").iter_unpack


class Frame(NamedTuple):
    """resized: the whole picture, after it was resized. size: of the part that is kept."""

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
    def enlarges(self) -> bool:
        """Whether the picture has fewer pixels than it is given: then detail is made up."""
        return self.resized[0] > self.original_size[0] or self.resized[1] > self.original_size[1]

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
    target: Size,
    center_crop: bool,
    flip: bool = False,
    draw: tuple[float, float] = (0.0, 0.0),
) -> Frame:
    """Fit a picture into `target`; `draw`, in [0, 1), places a random crop (row, column)."""
    resized = _covering(target, size)
    down, across = resized[0] - target[0], resized[1] - target[1]
    if center_crop:
        top, left = round(down / 2), round(across / 2)
    else:
        top, left = int(draw[0] * (down + 1)), int(draw[1] * (across + 1))
    return Frame(size, resized, flip, top, left, target)


def variants(
    size: Size,
    digest: str,
    *,
    target: Size,
    center_crop: bool,
    random_flip: bool,
    crops: int = 1,
) -> tuple[Frame, ...]:
    """Every frame of a picture that a run may use; which of them, each sample draws for itself.

    Crops are random but drawn from the content alone, not from the run's seed: every later run
    finds the picture in the cache, and one with more crops finds the first ones. Where there is
    no room for `crops` different ones, there are fewer.
    """
    assert crops > 0
    draws = [(0.0, 0.0)] if center_crop else _draws(digest, crops)
    frames = [
        frame(size, target=target, center_crop=center_crop, flip=flip, draw=draw)
        for draw in draws
        for flip in ((False, True) if random_flip else (False,))
    ]
    return tuple(dict.fromkeys(frames))


def _draws(digest: str, count: int) -> Sequence[tuple[float, float]]:
    """Pairs in [0, 1), the same for every picture of this content; the more begin as the fewer."""
    drawn = hashlib.shake_128(digest.encode("ascii")).digest(8 * count)
    return [(row / 2**32, column / 2**32) for row, column in _pairs(drawn)]


@lru_cache(maxsize=4096)
def _covering(target: Size, size: Size) -> Size:
    """The least size in which a picture covers `target`; rounded down, as in the known script."""
    assert min(target) > 0
    (height, width), (rows, columns) = size, target
    if height * columns >= width * rows:
        return int(columns * height / width), columns
    return rows, int(rows * width / height)
