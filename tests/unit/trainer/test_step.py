"""The dynamic loss scale."""

from mindbooth.trainer.step import LossScale


def scales(scale: LossScale, *verdicts: bool) -> list[float]:
    found = []
    for applied in verdicts:
        scale.learn(applied)
        found.append(scale.value)
    return found


def test_an_overflow_halves_it() -> None:
    assert scales(LossScale(64.0), False, False, True) == [32.0, 16.0, 16.0]


def test_so_many_sound_updates_in_a_row_double_it() -> None:
    found = scales(LossScale(64.0, interval=3), *[True] * 6)
    assert found == [64.0, 64.0, 128.0, 128.0, 128.0, 256.0]


def test_an_overflow_starts_the_row_anew() -> None:
    found = scales(LossScale(64.0, interval=3), True, True, False, True, True, True)
    assert found == [64.0, 64.0, 32.0, 32.0, 32.0, 64.0]


def test_it_grows_no_further_than_the_most() -> None:
    assert scales(LossScale(64.0, interval=1, most=256.0), *[True] * 4) == [128.0, *[256.0] * 3]


def test_it_stays_a_power_of_two_by_default() -> None:
    assert LossScale().value == 2.0**16
