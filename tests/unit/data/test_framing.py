"""Frames follow torchvision's Resize, flip and crop as the known script calls them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.data.framing import Frame, Size, frame, variants

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
    made = frame(size, target=(resolution, resolution), center_crop=True)
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
    made = frame(size, target=(64, 64), center_crop=False, draw=draw)
    assert (made.top, made.left) == corner


def test_flip_keeps_the_ids_and_mirrors_the_source() -> None:
    plain, flipped = (
        frame((64, 96), target=(64, 64), center_crop=False, flip=flip, draw=(0, 0.3))
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
        made = frame(size, target=(100, 100), center_crop=False, flip=flip, draw=(last, last))
        left, top, right, bottom = made.source_box
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]


def planned(**changes: object) -> tuple[Frame, ...]:
    options: dict[str, object] = {
        "target": (64, 64), "center_crop": False, "random_flip": False,
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


@pytest.mark.parametrize(
    ("size", "corner"),
    [((64, 4000), (0, 3657)), ((300, 200), (10, 0)), ((1000, 1333), (0, 20)), ((64, 64), (0, 0))],
)
def test_the_crop_is_pinned(size: Size, corner: Size) -> None:
    """A change of these numbers encodes every cached picture again."""
    found, _ = variants(size, DIGEST, target=(64, 64), center_crop=False, random_flip=True)
    assert (found.top, found.left) == corner


@pytest.mark.parametrize(
    ("size", "target", "resized", "corner"),
    [
        ((720, 1280), (768, 1344), (768, 1365), (0, 10)),
        ((720, 1290), (768, 1344), (768, 1376), (0, 16)),
        ((800, 1280), (768, 1344), (840, 1344), (36, 0)),
        ((1024, 1024), (1344, 768), (1344, 1344), (0, 288)),
        ((1344, 768), (1344, 768), (1344, 768), (0, 0)),
        ((2688, 1536), (1344, 768), (1344, 768), (0, 0)),
    ],
)
def test_a_picture_covers_a_target_that_is_no_square(
    size: Size, target: Size, resized: Size, corner: Size
) -> None:
    made = frame(size, target=target, center_crop=True)
    assert (made.resized, (made.top, made.left), made.size) == (resized, corner, target)
    assert made.time_ids == (*size, *corner, *target)


@given(
    size=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    target=st.tuples(st.integers(1, 2048), st.integers(1, 2048)),
    draw=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    center_crop=st.booleans(),
    flip=st.booleans(),
)
def test_every_frame_lies_in_its_picture(
    size: Size, target: Size, draw: tuple[float, float], center_crop: bool, flip: bool
) -> None:
    made = frame(size, target=target, center_crop=center_crop, flip=flip, draw=draw)
    assert any(made.resized[side] == target[side] for side in (0, 1))
    assert 0 <= made.top <= made.resized[0] - target[0]
    assert 0 <= made.left <= made.resized[1] - target[1]
    left, top, right, bottom = made.source_box
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]


def test_there_are_as_many_crops_as_asked_for_each_plain_and_flipped() -> None:
    made = planned(crops=5, random_flip=True)
    assert len({frame.left for frame in made}) == 5
    assert len(set(made)) == 10
    assert [frame for frame in made if not frame.flip] == list(planned(crops=5))


def test_more_crops_begin_with_the_fewer() -> None:
    assert planned(crops=8, random_flip=True)[:2] == planned(random_flip=True)
    assert planned(crops=8)[:3] == planned(crops=3)


def test_crops_spread_over_the_whole_picture() -> None:
    lefts = [frame.left for frame in planned(crops=300)]
    assert min(lefts) < 100
    assert max(lefts) > 4000 - 64 - 100


@pytest.mark.parametrize("size", [(64, 64), (640, 640)])
def test_without_room_all_crops_are_one(size: Size) -> None:
    made = variants(size, DIGEST, target=(64, 64), center_crop=False, random_flip=False, crops=5)
    assert len(made) == 1


def test_there_is_one_crop_from_the_centre() -> None:
    assert planned(crops=5, center_crop=True) == planned(center_crop=True)


@pytest.mark.parametrize(
    ("size", "target", "enlarges"),
    [
        ((1024, 1024), (1024, 1024), False),
        ((1024, 5000), (1024, 1024), False),
        ((1023, 5000), (1024, 1024), True),
        ((5000, 1023), (1024, 1024), True),
        ((900, 1300), (832, 1216), False),
        ((900, 1215), (832, 1216), True),
        ((832, 3000), (832, 1216), False),
    ],
)
def test_a_picture_that_is_enlarged_is_known(size: Size, target: Size, enlarges: bool) -> None:
    assert frame(size, target=target, center_crop=True).enlarges is enlarges
