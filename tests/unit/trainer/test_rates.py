"""The learning rate at the edges; the numbers are compared with diffusers in test_numbers.py."""

import pytest

from mindbooth.trainer.rates import SCHEDULES, schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_rate_lies_between_zero_and_the_rate(name: str) -> None:
    at = schedule(name, rate=2.0, warmup=10, updates=100, cycles=3, power=2.0)
    assert all(0 <= at(u) <= 2.0 for u in range(120))


@pytest.mark.parametrize("name", set(SCHEDULES) - {"constant"})
def test_a_warm_up_climbs_from_zero_to_the_rate(name: str) -> None:
    at = schedule(name, rate=2.0, warmup=4, updates=100)
    assert [at(u) for u in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_update_has_the_full_rate(name: str) -> None:
    assert schedule(name, rate=2.0, warmup=0, updates=100)(0) == 2.0


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("linear", 0.0),
        ("cosine", 0.0),
        ("cosine_with_restarts", 0.0),
        ("polynomial", 1e-7),
        ("constant", 2.0),
        ("constant_with_warmup", 2.0),
    ],
)
def test_beyond_the_last_update_a_rate_stays_where_it_ended(name: str, last: float) -> None:
    at = schedule(name, rate=2.0, warmup=3, updates=10)
    assert [at(10), at(25)] == [last, last]
