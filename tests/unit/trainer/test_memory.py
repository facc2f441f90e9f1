"""Meters of memory, seen on memory that a test takes and gives back."""

import numpy as np

from mindbooth.trainer import memory
from mindbooth.trainer.memory import Host

TAKEN = 200_000_000


def test_the_peak_is_that_since_the_last_reset() -> None:
    host = Host()
    host.reset()
    before, _ = host.read()
    taken = np.ones(TAKEN, np.uint8)
    held, _ = host.read()
    del taken
    after, peak = host.read()
    assert abs(held - before - TAKEN) < TAKEN / 10
    assert abs(peak - before - TAKEN) < TAKEN / 10
    assert after < before + TAKEN / 10
    host.reset()
    assert host.read()[1] < before + TAKEN / 10
    assert host.resets


def test_a_size_is_shown_as_people_read_it() -> None:
    assert memory.shown(5_134_927_368) == "5.13 GB"
    assert memory.shown(123_456_789) == "123 MB"
