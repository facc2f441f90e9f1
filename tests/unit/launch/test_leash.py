import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mindbooth.launch.leash import BEAT, SILENCE_SECONDS, Leash, word

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


class Held:
    """A leash with both ends in this process."""

    def __init__(self) -> None:
        fd, self.holder = os.pipe()
        self.leash = Leash(fd, now=0)

    def hear(self, text: bytes, now: float = 1) -> list[signal.Signals]:
        os.write(self.holder, text)
        return self.leash.requests(now)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    os.close(made.leash.fileno())
    with suppress(OSError):
        os.close(made.holder)


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [(INT, INT), (TERM, TERM), (USR1, USR1), (signal.SIGHUP, TERM)],
)
def test_a_stop_request_arrives(held: Held, sent: signal.Signals, arrives: signal.Signals) -> None:
    assert held.hear(word(sent)) == [arrives]
    assert held.leash.requests(now=2) == []


def test_requests_arrive_in_order_and_whole_however_they_are_cut(held: Held) -> None:
    assert held.hear(b"INT\nUS") == [INT]
    assert held.hear(b"R1\nTERM\n") == [USR1, TERM]


@pytest.mark.parametrize("line", [b"KILL\n", b"SIGINT\n", b"rm -r /\n", b"\xff\n", BEAT])
def test_other_lines_ask_for_nothing(held: Held, line: bytes) -> None:
    assert held.hear(line) == []
    assert held.leash.held


def test_a_holder_that_is_gone_asks_for_term_once(held: Held) -> None:
    os.write(held.holder, b"USR1\n")
    os.close(held.holder)
    assert held.leash.requests(now=1) == [USR1, TERM]
    assert not held.leash.held
    assert held.leash.requests(now=2 * SILENCE_SECONDS) == []


def test_silence_asks_for_term_and_a_beat_is_none(held: Held) -> None:
    assert held.hear(BEAT, now=SILENCE_SECONDS) == []
    assert held.leash.requests(now=2 * SILENCE_SECONDS) == []
    assert held.leash.requests(now=2 * SILENCE_SECONDS + 1) == [TERM]
    assert held.leash.requests(now=2 * SILENCE_SECONDS + 2) == []


def test_what_waits_is_heard_before_silence_is_judged(held: Held) -> None:
    assert held.hear(BEAT, now=10 * SILENCE_SECONDS) == []
