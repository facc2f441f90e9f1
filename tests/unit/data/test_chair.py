"""What rank 0 tells all ranks, by what they said; how it is heard is in test_meeting.py."""

import pytest

from mindbooth.data.chair import BYE, FAILED, MEET, MET, Minutes
from mindbooth.data.lines import Message

GONE = b"is gone: its process ended, or its host or network failed"
Said = tuple[int, Message | None]  # None: the line has ended


def failed(words: bytes, error: bytes = b"RankFailed") -> Message:
    return (FAILED, error, words)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param([(0, (MEET, b"a", b"")), (1, (MEET, b"a", b""))], [], id="one is absent"),
        pytest.param(
            [(2, (MEET, b"a", b"z")), (0, (MEET, b"a", b"x")), (1, (MEET, b"a", b"y"))],
            [(MET, b"a", b"x", b"y", b"z")],
            id="contents by rank",
        ),
        pytest.param(
            [(rank, (MEET, b"a", b"")) for rank in range(3)], [(MET, b"a")], id="no contents"
        ),
        pytest.param(
            [
                (0, (MEET, b"a", b"")),
                *((rank, (MEET, b"b", b"")) for rank in range(3)),
                (1, (MEET, b"a", b"")),
                (2, (MEET, b"a", b"")),
            ],
            [(MET, b"b"), (MET, b"a")],
            id="names apart",
        ),
        pytest.param(
            [(1, (FAILED, b"DataError", b"no")), (2, (FAILED, b"DataError", b"later"))],
            [failed(b"no", b"DataError")],
            id="the first failure",
        ),
        pytest.param([(1, failed(b"oh"))], [failed(b"rank 1: oh")], id="a crash names its rank"),
        pytest.param([(2, None)], [failed(b"rank 2 " + GONE)], id="a line that ended"),
        pytest.param([(2, (BYE,)), (2, None)], [], id="one that left"),
        pytest.param([(0, (BYE,))], [(BYE,)], id="rank 0 left"),
        pytest.param(
            [(1, (MEET, b"a", b"")), (0, (BYE,))],
            [failed(b"rank 0 has left before all met at 'a'"), (BYE,)],
            id="rank 0 left too early",
        ),
        pytest.param(
            [(0, (MEET, b"a", b"")), (2, (BYE,))],
            [failed(b"rank 2 has left before all met at 'a'")],
            id="one that left is waited for",
        ),
        pytest.param(
            [(2, (BYE,)), (0, (MEET, b"a", b""))],
            [failed(b"rank 2 has left before all met at 'a'")],
            id="waiting for one that left",
        ),
        pytest.param(
            [(2, (MEET, b"a", b"")), (2, (BYE,)), (0, (MEET, b"a", b"")), (1, (MEET, b"a", b""))],
            [(MET, b"a")],
            id="one that came and left",
        ),
    ],
)
def test_what_follows(said: list[Said], told: list[Message]) -> None:
    minutes = Minutes(3)
    heard = [
        message
        for rank, words in said
        for message in (minutes.lose(rank) if words is None else minutes.take(rank, words))
    ]
    assert heard == told
    assert minutes.lasting == [message for message in told if message[0] != MET]
