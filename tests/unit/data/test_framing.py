"""Frames follow torchvision's Resize, flip and crop as the known script calls them."""

import hashlib

import pytest

from mindbooth.data.errors import DataError
from mindbooth.data.framing import Frame, frame, variants

DIGEST = hashlib.sha256(b"a picture").hexdigest()


@pytest.mark.parametrize(
    ("size", "resolution", "resized", "corner"),
    [
        # size and resized are (height, width); corner is torchvision's CenterCrop, which rounds
        # halves to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2
        ((1024, 1024), 1024, (1024, 1024), (0, 0)),
        ((720, 1280), 1024, (1024, 1820), (0, 398)),
        ((1280, 720), 1024, (1820, 1024), (398, 0)),
        ((4032, 3024), 1024, (1365, 1024), (170, 0)),
        ((10, 11), 10, (10, 11), (0, 0)),
        ((10, 13), 10, (10, 13), (0, 2)),
        ((10, 15), 10, (10, 15), (0, 2)),
        ((15, 10), 10, (15, 10), (2, 0)),
        ((1, 1), 512, (512, 512), (0, 0)),
        ((3, 7), 64, (64, 149), (0, 42)),
        ((1, 200_000), 512, (512, 102_400_000), (0, 51_199_744)),
    ],
)
def test_center_crop(
    size: tuple[int, int], resolution: int, resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    made = frame(size, resolution=resolution, center_crop=True)
    assert made.resized == resized
    assert (made.top, made.left) == corner
    assert made.time_ids == (*size, *corner, resolution, resolution)


@pytest.mark.parametrize(
    ("size", "draw", "corner"),
    [
        ((64, 96), (0.0, 0.0), (0, 0)),
        ((64, 96), (0.999999, 0.999999), (0, 32)),
        ((64, 96), (0.5, 0.5), (0, 16)),
        ((96, 64), (0.5, 0.5), (16, 0)),
        ((96, 64), (1 - 2**-53, 1 - 2**-53), (32, 0)),
        ((64, 64), (0.7, 0.7), (0, 0)),
    ],
)
def test_random_crop_reaches_every_corner_and_no_further(
    size: tuple[int, int], draw: tuple[float, float], corner: tuple[int, int]
) -> None:
    made = frame(size, resolution=64, center_crop=False, draw=draw)
    assert (made.top, made.left) == corner


def test_flip_keeps_the_ids_and_mirrors_the_source() -> None:
    plain, flipped = (
        frame((64, 96), resolution=64, center_crop=False, flip=flip, draw=(0, 0.3))
        for flip in (False, True)
    )
    assert plain.time_ids == flipped.time_ids
    assert plain.source_box == (9.0, 0.0, 73.0, 64.0)
    assert flipped.source_box == (96 - 73.0, 0.0, 96 - 9.0, 64.0)


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 7), (4000, 6001), (33, 32), (7, 7), (7, 11), (977, 1)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_the_source_box_lies_in_the_picture(size: tuple[int, int], flip: bool) -> None:
    for last in (0.0, 0.5, 1 - 2**-53):
        made = frame(size, resolution=100, center_crop=False, flip=flip, draw=(last, last))
        left, top, right, bottom = made.source_box
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]


def planned(**changes: object) -> tuple[Frame, ...]:
    options: dict[str, object] = {
        "resolution": 64, "center_crop": False, "random_flip": False,
    }  # fmt: skip
    options |= changes
    digest = str(options.pop("digest", DIGEST))
    return variants((64, 4000), digest, **options)  # type: ignore[arg-type]


def test_without_flip_a_picture_has_one_variant() -> None:
    assert [made.flip for made in planned()] == [False]


def test_with_flip_it_has_two_of_the_same_crop() -> None:
    plain, flipped = planned(random_flip=True)
    assert (plain.flip, flipped.flip) == (False, True)
    assert plain == planned()[0]
    assert plain.time_ids == flipped.time_ids


def test_the_crop_belongs_to_the_content() -> None:
    other = hashlib.sha256(b"another picture").hexdigest()
    assert planned()[0].left != planned(digest=other)[0].left
    assert planned() == planned()


def test_center_crop_takes_the_middle_of_any_picture() -> None:
    other = hashlib.sha256(b"another picture").hexdigest()
    assert planned(center_crop=True) == planned(center_crop=True, digest=other)


def test_a_resolution_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="resolution is 0"):
        frame((10, 10), resolution=0, center_crop=True)
