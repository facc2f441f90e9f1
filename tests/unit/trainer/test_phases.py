"""The table of phases: times, seconds and memory add up by name."""

import pytest

from mindbooth.trainer.phases import Phases
from mindbooth.trainer.trace import Recording

GB = 10**9


class Readings:
    """A meter that tells what it is given."""

    name = "host"

    def __init__(self, *readings: tuple[int, int], resets: bool = True) -> None:
        self.readings = list(readings)
        self.resets = resets

    def reset(self) -> None:
        pass

    def read(self) -> tuple[int, int]:
        return self.readings.pop(0)


def test_phases_add_up_by_name_also_where_they_fail() -> None:
    phases = Phases()
    for _ in range(2):
        with phases("updates"):
            pass
    with pytest.raises(KeyError), phases("export"):
        raise KeyError
    assert {name: phase.times for name, phase in phases.phases.items()} == {
        "updates": 2, "export": 1,
    }  # fmt: skip
    assert [line.split()[0] for line in phases.table().splitlines()] == [
        "phase", "updates", "export",
    ]  # fmt: skip


def test_memory_is_what_the_last_time_left_and_the_most_that_any_time_needed() -> None:
    phases = Phases([Readings((GB, 5 * GB), (2 * GB, 3 * GB))])
    for _ in range(2):
        with phases("updates"):
            pass
    head, row = phases.table().splitlines()
    assert head.endswith("host end GB  host peak GB")
    assert row.split()[-2:] == ["2.00", "5.00"]


def test_a_peak_that_can_not_be_reset_is_told_as_what_it_is() -> None:
    phases = Phases([Readings((GB, GB), resets=False)])
    with phases("updates"):
        pass
    assert phases.table().splitlines()[0].endswith("host peak so far GB")


def test_columns_stand_under_their_heads() -> None:
    phases = Phases([Readings((GB, GB))])
    with phases("look at the input"):
        pass
    assert len({len(line) for line in phases.table().splitlines()}) == 1


def test_phases_are_spans_of_the_trace_also_where_they_fail() -> None:
    phases = Phases(trace=Recording(0))
    with phases("encode"):
        pass
    with pytest.raises(KeyError), phases("updates"), phases.trace.span("forward", 0):
        raise KeyError
    assert isinstance(phases.trace, Recording)
    encode, forward, updates = phases.trace.spans
    assert (encode.name, forward.name, updates.name) == ("encode", "forward", "updates")
    assert encode.ended <= updates.began <= forward.began <= forward.ended <= updates.ended
    assert (updates.ended - updates.began) / 1e9 <= phases.phases["updates"].seconds


def test_what_updates_are_made_of_stands_below_the_phases() -> None:
    phases = Phases(trace=Recording(0))
    with phases("encode"):
        pass
    alone = phases.table()
    assert [line.split()[0] for line in alone.splitlines()] == ["phase", "encode"]
    with phases("updates"), phases.trace.span("forward", 0):
        pass
    lines = [line.split("  ")[0] for line in phases.table().splitlines()]
    assert lines[:6] == ["phase", "encode", "updates", "in updates", "each update", "forward"]
