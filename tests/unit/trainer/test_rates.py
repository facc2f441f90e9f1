"""The schedule at the edges; its numbers are compared with diffusers in test_optimizers.py."""

import pytest

from mindbooth.trainer.rates import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rate", [2.0, 1e-7, 0.0])
def test_every_factor_lies_between_0_and_1(name: str, rate: float) -> None:
    factor = schedule(name, rate=rate, warmup=10, updates=100, cycles=3, power=2.0)
    assert all(0 <= factor(u) <= 1 for u in range(120))


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_a_warm_up_climbs_from_0_to_1(name: str) -> None:
    factor = schedule(name, rate=2.0, warmup=4, updates=100)
    assert [factor(u) for u in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_update_has_the_full_rate(name: str) -> None:
    assert schedule(name, rate=2.0, warmup=0, updates=100)(0) == 1.0


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("linear", 0.0),
        ("cosine", 0.0),
        ("cosine_with_restarts", 0.0),
        ("polynomial", 1e-7 / 2.0),
        ("constant", 1.0),
        ("constant_with_warmup", 1.0),
    ],
)
def test_beyond_the_last_update_a_factor_stays_where_it_ended(name: str, last: float) -> None:
    factor = schedule(name, rate=2.0, warmup=3, updates=10)
    assert [factor(10), factor(25)] == [last, last]
