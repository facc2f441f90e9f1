"""What the user is told about pictures and prompts before a run."""

import pytest

from mindbooth.data import framing
from mindbooth.data.batches import Variant
from mindbooth.trainer.config import DataConfig
from mindbooth.trainer.needed import _shortened, _small

SMALL, LARGE = (40, 90), (700, 900)  # height, width


def remarks(*sizes: tuple[int, int], **options: int) -> list[str]:
    config = DataConfig(
        instance_data_dir="dog", instance_prompt="a dog", **{"resolution": 64, **options}
    )
    target = (config.resolution, config.resolution)
    made = [
        Variant(
            "",
            framing.frame(size, target=target, center_crop=True, flip=flip),
            f"{number}.png",
            "0" * 64,
        )
        for number, size in enumerate(sizes)
        for flip in (False, True)
    ]
    return _small(made, config)


@pytest.mark.parametrize(
    ("size", "options", "told"),
    [
        (LARGE, {}, []),
        (
            SMALL,
            {},
            ["0.png is 90 pixels wide and 40 high, and is enlarged for 64 by 64: that trains blur"],
        ),
        (SMALL, {"min_image_size": 40}, []),
        (
            LARGE,
            {"min_image_size": 701},
            ["0.png is 900 pixels wide and 700 high: less than --min_image_size 701"],
        ),
    ],
)
def test_small_pictures_are_told_once(
    size: tuple[int, int], options: dict[str, int], told: list[str]
) -> None:
    assert remarks(size, **options) == told


def test_many_small_pictures_are_counted() -> None:
    told = remarks(*[SMALL] * 9)
    assert [line[:5] for line in told[:-1]] == ["0.png", "1.png", "2.png"]
    assert told[-1] == "6 more pictures are as small"


def test_one_line_is_not_left_out_to_be_counted() -> None:
    assert _shortened("abcd", "{} more", str.upper) == ["A", "B", "C", "D"]
    assert _shortened("abcde", "{} more", str.upper) == ["A", "B", "C", "2 more"]
