import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mindbooth.launch.peers import Card, Meeting, meet

OURS = ".mindbooth-doctor"


def card(name: str, address: str | None = "127.0.0.1") -> Card:
    return Card(name=name, address=address, facts={"mindspore": "2.7.1"})


def meet_all(folder: Path, cards: list[Card], ahead: float = 0.0) -> list[Meeting]:
    """All hosts at once; the clock of the last is ahead."""
    with ThreadPoolExecutor(len(cards)) as pool:
        hosts: list[Future[Meeting]] = [
            pool.submit(
                meet,
                folder,
                one,
                nnodes=len(cards),
                node_rank=rank,
                wait_seconds=30,
                clock=lambda off=ahead * (one is cards[-1]): time.time() + off,
            )
            for rank, one in enumerate(cards)
        ]
        return [host.result() for host in hosts]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_hosts_see_one_another_and_leave_nothing_behind(tmp_path: Path, count: int) -> None:
    cards = [card(f"n{rank}") for rank in range(count)]
    for rank, meeting in enumerate(meet_all(tmp_path, cards)):
        others = {i: one for i, one in enumerate(cards) if i != rank}
        assert {i: peer.card for i, peer in meeting.peers.items()} == others
        assert all(peer.reached for peer in meeting.peers.values())
        assert meeting.double is None
    assert os.listdir(tmp_path) == []


def test_the_difference_of_two_clocks_lies_within_the_bounds(tmp_path: Path) -> None:
    first, second = meet_all(tmp_path, [card("n0"), card("n1")], ahead=75.0)
    assert first.peers[1].ahead == pytest.approx(75, abs=first.peers[1].within)
    assert second.peers[0].ahead == pytest.approx(-75, abs=second.peers[0].within)
    assert first.peers[1].within < 5


def test_an_address_that_nobody_answers_at_is_not_reached(tmp_path: Path) -> None:
    first, second = meet_all(tmp_path, [card("n0"), card("n1", address=None)])
    assert not first.peers[1].reached
    assert second.peers[0].reached


def test_a_host_that_does_not_come_is_missed_and_our_file_goes(tmp_path: Path) -> None:
    meeting = meet(tmp_path, card("n0"), nnodes=2, node_rank=0, wait_seconds=0.3)
    assert meeting.peers == {}
    assert os.listdir(tmp_path) == []


def test_what_an_earlier_meeting_left_is_nobody(tmp_path: Path) -> None:
    place = tmp_path / OURS
    place.mkdir()
    old = {
        "word": "old",
        "card": {"name": "n1", "address": "127.0.0.1", "facts": {}},
        "port": 1,
        "sent": 0.0,
        "heard": {"0": ["old", 0.0]},
        "state": "knows",
    }
    (place / "host-1.json").write_text(json.dumps(old))
    (place / "host-0.json").write_text(json.dumps(old))
    meeting = meet(tmp_path, card("n0"), nnodes=2, node_rank=0, wait_seconds=0.5)
    assert meeting == Meeting()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"card": 3}', '{"card": {"name": 1}}'])
def test_half_a_file_is_read_again_later(tmp_path: Path, content: str) -> None:
    place = tmp_path / OURS
    place.mkdir()
    (place / "host-1.json").write_text(content)
    meeting = meet(tmp_path, card("n0"), nnodes=2, node_rank=0, wait_seconds=0.3)
    assert meeting.peers == {}


def test_two_hosts_with_one_number_notice_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(meet, tmp_path, card(name), nnodes=2, node_rank=0, wait_seconds=2)
            for name in ("n0", "n1")
        ]
        doubles = [host.result().double for host in both]
    assert any(doubles)


def test_nobody_else_may_write_into_the_meeting(tmp_path: Path) -> None:
    modes = []
    before = os.umask(0)
    try:

        def clock() -> float:
            modes.extend(
                path.stat().st_mode & 0o777 for path in (tmp_path / OURS,) if path.exists()
            )
            return time.time()

        meet(tmp_path, card("n0"), nnodes=2, node_rank=0, wait_seconds=0.5, clock=clock)
    finally:
        os.umask(before)
    assert set(modes) == {0o700}


def test_a_folder_that_takes_no_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        meet(tmp_path / "nowhere", card("n0"), nnodes=2, node_rank=0, wait_seconds=1)
