"""The sizes are those that SDXL was trained at, and a picture gets the one that crops it least."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.data.buckets import by_size, nearest, table
from mindbooth.data.framing import Size

# As the paper prints them beside the sizes: height / width.
PUBLISHED_RATIOS = (
    0.25, 0.26, 0.27, 0.28, 0.32, 0.33, 0.35, 0.4, 0.42, 0.48, 0.5, 0.52, 0.57, 0.6, 0.68, 0.72,
    0.78, 0.82, 0.88, 0.94, 1.0, 1.07, 1.13, 1.21, 1.29, 1.38, 1.46, 1.67, 1.75, 2.0, 2.09, 2.4,
    2.5, 2.89, 3.0, 3.11, 3.62, 3.75, 3.88, 4.0,
)  # fmt: skip
SDXL = table(1024, 64)
SIDES = st.integers(1, 20_000)


def kept(size: Size, target: Size) -> Fraction:
    """The share of a picture that is left when it covers the target and is cropped to it."""
    one, other = Fraction(*size), Fraction(*target)
    return min(one, other) / max(one, other)


def test_the_published_table_is_given_at_1024() -> None:
    assert tuple(round(height / width, 2) for height, width in SDXL) == PUBLISHED_RATIOS
    assert all(height % 64 == width % 64 == 0 for height, width in SDXL)
    assert all(0.9 <= height * width / 1024**2 <= 1 for height, width in SDXL)


def test_it_scales_with_the_resolution() -> None:
    assert table(512, 32) == tuple((height // 2, width // 2) for height, width in SDXL)


@pytest.mark.parametrize(
    ("resolution", "multiple", "expected"),
    [
        (8, 8, {(8, 8), (8, 16), (16, 8)}),
        (1, 8, {(8, 8)}),
        (16, 8, {(8, 32), (8, 24), (16, 24), (16, 16), (24, 16), (24, 8), (32, 8)}),
    ],
)
def test_sizes_that_become_equal_are_one(
    resolution: int, multiple: int, expected: set[Size]
) -> None:
    assert sorted(table(resolution, multiple)) == sorted(expected)


@given(st.integers(1, 3000), st.sampled_from([8, 16, 32, 64]))
def test_sizes_fit_the_model_and_are_near_the_scaled_ones(resolution: int, multiple: int) -> None:
    sizes = table(resolution, multiple)
    assert len(set(sizes)) == len(sizes)
    assert all(side % multiple == 0 and side > 0 for size in sizes for side in size)
    for size in SDXL:
        wanted = [Fraction(side * resolution, 1024) for side in size]
        assert any(
            all(abs(side - want) <= max(Fraction(multiple, 2), multiple - want)
                for side, want in zip(found, wanted, strict=True))
            for found in sizes
        )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024)),
        ((64, 64), (1024, 1024)),
        ((720, 1280), (768, 1344)),
        ((1920, 1080), (1344, 768)),
        ((4032, 3024), (1152, 896)),
        ((2000, 3000), (832, 1216)),
        ((1, 5000), (512, 2048)),
        ((5000, 1), (2048, 512)),
    ],
)
def test_a_picture_goes_to_the_nearest_shape(size: Size, expected: Size) -> None:
    assert nearest(size, SDXL) == expected


@given(st.tuples(SIDES, SIDES))
def test_no_other_size_keeps_more_of_the_picture(size: Size) -> None:
    found = kept(size, nearest(size, SDXL))
    assert all(kept(size, target) <= found + Fraction(1, 10**15) for target in SDXL)


def test_of_equal_shapes_the_largest_is_taken() -> None:
    assert nearest((30, 20), ((16, 16), (24, 16), (48, 32), (12, 8))) == (48, 32)


def test_examples_are_put_together_by_size_the_most_frequent_first() -> None:
    tall, wide, square = (40, 24), (24, 40), (32, 32)
    assert by_size([tall, square, wide, square, wide, square]) == ((1, 3, 5), (2, 4), (0,))
    assert by_size([square, square]) == ((0, 1),)


def test_the_order_of_equally_frequent_sizes_is_that_of_the_sizes() -> None:
    assert by_size([(40, 24), (24, 40)]) == ((1,), (0,))
    assert by_size([(24, 40), (40, 24)]) == ((0,), (1,))
