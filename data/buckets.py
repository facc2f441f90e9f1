"""Aspect-ratio buckets: the sizes that pictures are trained at, and which one a picture gets. Pure.

The examples of one size are a bucket, and an update takes its samples from one bucket
(`stream.py`). Sizes are (height, width), as in `framing.py`.
"""

from collections.abc import Sequence

from .framing import Size

# What SDXL was trained at (https://arxiv.org/abs/2307.01952, appendix I), height first. There is no
# 1344 x 704 in it.
_SDXL = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856),
    (576, 1792), (576, 1728), (576, 1664),
    (640, 1600), (640, 1536),
    (704, 1472), (704, 1408), (704, 1344),
    (768, 1344), (768, 1280),
    (832, 1216), (832, 1152),
    (896, 1152), (896, 1088),
    (960, 1088), (960, 1024),
    (1024, 1024), (1024, 960),
    (1088, 960), (1088, 896),
    (1152, 896), (1152, 832),
    (1216, 832),
    (1280, 768),
    (1344, 768),
    (1408, 704),
    (1472, 704),
    (1536, 640),
    (1600, 640),
    (1664, 576),
    (1728, 576),
    (1792, 576),
    (1856, 512),
    (1920, 512),
    (1984, 512),
    (2048, 512),
)  # fmt: skip
_RESOLUTION = 1024


def table(resolution: int, multiple: int) -> tuple[Size, ...]:
    """SDXL's sizes, scaled from 1024 to `resolution` and rounded to the nearest `multiple` pixels.

    Sizes that become equal are one. 1024 and 64 give the table as it was published.
    """
    assert resolution > 0
    assert multiple > 0

    def scaled(side: int) -> int:
        steps = (2 * side * resolution + _RESOLUTION * multiple) // (2 * _RESOLUTION * multiple)
        return max(1, steps) * multiple

    return tuple(dict.fromkeys((scaled(height), scaled(width)) for height, width in _SDXL))


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` that keeps most of a picture; of equal ones the largest."""

    def kept(target: Size) -> tuple[float, int]:
        # What is left of a picture that is made to cover `target` and cropped to it.
        one, other = size[0] * target[1], size[1] * target[0]
        return min(one, other) / max(one, other), target[0] * target[1]

    return max(sizes, key=kept)


def by_size(sizes: Sequence[Size]) -> tuple[tuple[int, ...], ...]:
    """The examples of each size, as positions in `sizes`: the size that most have comes first.

    >>> by_size([(64, 32), (32, 64), (32, 64)])
    ((1, 2), (0,))
    """
    found: dict[Size, list[int]] = {}
    for position, size in enumerate(sizes):
        found.setdefault(size, []).append(position)
    # Not the order of the folder, but the sizes themselves decide between equally many.
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(tuple(positions) for _, positions in ordered)
