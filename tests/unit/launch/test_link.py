"""The launchers' talk, over real sockets, with the clock and the signals given."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mindbooth.launch import link as module
from mindbooth.launch.link import Line, Link
from mindbooth.launch.verdict import HOST, Failure, Outcome

KILLED = Failure(who=3, host=1, status=137, words=("last words",))
LATER = Failure(who=0, host=0, status=1)
DONE = Outcome(statuses={0: 0, 1: 0})
Talk = tuple[Link, Link, Link]


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        caller = socket.create_connection(door.getsockname())
        return door.accept()[0], caller


@pytest.fixture
def talk() -> Iterator[Talk]:
    """Three hosts."""
    one, two = connected(), connected()
    head = Link({1: Line(one[0]), 2: Line(two[0])}, hosts=3, workers=6)
    first = Link({0: Line(one[1])}, node_rank=1, hosts=3, workers=6)
    second = Link({0: Line(two[1])}, node_rank=2, hosts=3, workers=6)
    yield head, first, second
    for link in (head, first, second):
        vanish(link)


def vanish(link: Link) -> None:
    """As if its launcher was killed."""
    link._ended.set()
    for line in link.sources:
        line.hang_up()


def silent(_: float, others: Sequence[object] = ()) -> list[signal.Signals]:
    time.sleep(0.01)
    return []


def settle(
    talk: Sequence[Link], outcomes: Sequence[Outcome], again: int | None = None
) -> list[tuple[Outcome, int | None]]:
    """All hosts end at once."""
    with ThreadPoolExecutor(3) as threads:
        ends = [
            threads.submit(link.settle, outcome, silent, lambda _: again)
            for link, outcome in zip(talk, outcomes, strict=True)
        ]
        return [end.result(timeout=20) for end in ends]


def heard(link: Link, true: Callable[[list[object]], bool]) -> list[object]:
    found: list[object] = []
    limit = time.monotonic() + 5
    while not true(found):
        assert time.monotonic() < limit, found
        found += link.hear()
    return found


def test_a_launcher_alone_hears_nothing_and_settles_at_once() -> None:
    assert Link().hear() == []
    assert Link().settle(DONE, silent, lambda _: None) == (DONE, None)


def test_a_failure_on_one_host_is_told_on_all(talk: Talk) -> None:
    head, first, second = talk
    first.failed(KILLED)
    for link in (head, second, first):
        assert heard(link, bool) == [KILLED]


def test_what_host_0_hears_of_first_is_the_cause_on_all(talk: Talk) -> None:
    head, first, second = talk
    head.failed(LATER)
    first.failed(KILLED)
    assert heard(second, bool) == [LATER]
    mine = [Outcome(failure=LATER), Outcome(failure=KILLED), Outcome(failure=LATER)]
    assert {end.failure for end, _ in settle(talk, mine)} == {LATER}


def test_a_stop_request_to_one_host_reaches_the_others_once(talk: Talk) -> None:
    head, first, second = talk
    second.stop(signal.SIGUSR1)
    assert heard(head, bool) == [signal.SIGUSR1]
    assert heard(first, bool) == [signal.SIGUSR1]
    assert second.hear() == []


def test_all_hosts_end_with_one_status(talk: Talk) -> None:
    ends = settle(
        talk, [Outcome(statuses={0: 0}), Outcome(statuses={1: 0}), Outcome(statuses={2: 0})]
    )
    assert [(end.status, again) for end, again in ends] == [(0, None)] * 3
    assert ends[0][0].statuses == {0: 0, 1: 0, 2: 0}


def test_a_restart_is_decided_by_host_0_and_forgets_the_failure(talk: Talk) -> None:
    for link in talk[1:]:
        link.failed(KILLED)
    failed = [Outcome(failure=KILLED)] * 3
    assert [again for _, again in settle(talk, failed, again=7)] == [7, 7, 7]
    ends = settle(talk, [DONE] * 3)
    assert [(end.status, end.failure) for end, _ in ends] == [(0, None)] * 3


def test_no_restart_after_a_stop_request(talk: Talk) -> None:
    talk[1].stop(signal.SIGTERM)
    assert heard(talk[0], bool)
    assert [again for _, again in settle(talk, [Outcome(failure=KILLED)] * 3, again=7)] == [
        None
    ] * 3


def test_a_launcher_that_is_gone_is_a_lost_host_for_all(talk: Talk) -> None:
    head, first, second = talk
    vanish(first)
    (lost,) = heard(head, bool)
    assert isinstance(lost, Failure)
    assert (lost.who, lost.host, lost.status) == (HOST, 1, 1)
    assert "without a word" in lost.why
    assert heard(second, bool) == [lost]
    ends = settle([head, second], [Outcome(failure=lost)] * 2)
    assert [end.status for end, _ in ends] == [1, 1]


def test_a_silent_host_is_lost(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", 1.0)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    head, first, second = talk
    found: list[object] = []
    limit = time.monotonic() + 20
    while not found:  # the second host beats, the first does not
        assert time.monotonic() < limit
        found += head.hear()
        assert second.hear() == [] or found
    assert [(f.host, f.who) for f in found if isinstance(f, Failure)] == [(1, HOST)]


def test_silence_while_we_did_not_listen_is_no_loss(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, first, second = talk
    assert head.hear() == []
    monkeypatch.setattr(module, "LOST_SECONDS", 0.2)
    for line in head.sources:
        line.heard_at -= 60
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    time.sleep(0.1)  # the launcher is suspended
    assert head.hear() == []
    assert first.hear() == second.hear() == []


def test_a_host_that_is_lost_after_its_failure_prevents_a_restart(talk: Talk) -> None:
    head, first, second = talk
    first.failed(KILLED)
    assert heard(head, bool) == [KILLED]
    vanish(first)
    ends = settle([head, second], [Outcome(failure=KILLED)] * 2, again=7)
    assert [(end.failure, again) for end, again in ends] == [(KILLED, None)] * 2


def test_what_follows_the_end_of_an_attempt_belongs_to_the_next(talk: Talk) -> None:
    head, first, _ = talk
    whole = Outcome(failure=LATER)
    head._tell("end", outcome=whole.as_json(), again=2)
    head._tell("failed", failure=KILLED.as_json())
    assert first.settle(whole, silent, lambda _: None) == (whole, 2)
    assert heard(first, bool) == [KILLED]


def test_a_stop_that_crosses_the_end_is_heeded_by_the_next_attempt(talk: Talk) -> None:
    head, first, _ = talk
    whole = Outcome(failure=LATER)
    stops = [signal.SIGTERM]

    def wait(_: float, others: Sequence[object] = ()) -> list[signal.Signals]:
        head._tell("end", outcome=whole.as_json(), again=2)
        return [stops.pop()]

    assert first.settle(whole, wait, lambda _: None) == (whole, 2)
    assert first.hear() == [signal.SIGTERM]
    assert heard(head, bool) == [signal.SIGTERM]


def test_one_ctrl_c_that_comes_to_each_host_is_passed_on_once(talk: Talk) -> None:
    head, first, second = talk
    for link in talk:
        link.stop(signal.SIGINT)
    for link in talk:
        assert set(heard(link, bool)) <= {signal.SIGINT}
    assert not module.is_second(signal.SIGINT, 10.0, 11.0)
    assert module.is_second(signal.SIGINT, 10.0, 13.0)
    assert not module.is_second(signal.SIGTERM, 10.0, 13.0)
    assert second is talk[2]


def test_a_long_end_arrives_though_beats_were_not_read(talk: Talk) -> None:
    head, first, second = talk
    vanish(second)
    for _ in range(50):
        first._tell("beat")
    whole = Outcome(statuses=dict.fromkeys(range(20_000), 0))
    head._tell("end", outcome=whole.as_json(), again=None)
    with ThreadPoolExecutor(1) as threads:
        closed = threads.submit(head.close)
        assert first.settle(whole, silent, lambda _: None) == (whole, None)
        first.close()
        closed.result(timeout=20)


def test_without_host_0_each_host_ends_by_itself(talk: Talk) -> None:
    head, first, _ = talk
    vanish(head)
    (lost,) = heard(first, bool)
    assert isinstance(lost, Failure)
    whole, again = first.settle(Outcome(failure=lost), silent, lambda _: 7)
    assert (whole.status, again, lost.host) == (1, None, 0)


def test_a_hosts_own_failure_is_told_though_host_0_is_lost(talk: Talk) -> None:
    head, first, _ = talk
    vanish(head)
    first.failed(KILLED)
    whole, _ = first.settle(Outcome(failure=KILLED), silent, lambda _: None)
    assert whole.failure == KILLED


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n", b"[1]\n", b"{}\n", b"\xff\xfe\n", b"[" * 50_000 + b"\n"]
)
def test_what_is_no_message_closes_the_line(noise: bytes) -> None:
    ours, theirs = connected()
    line = Line(ours)
    theirs.sendall(noise)
    assert line.take() is None
    assert line.closed
    line.hang_up()
    theirs.close()


@pytest.mark.parametrize(
    "failure", [7, {}, replace(KILLED, host=2).as_json(), replace(KILLED, who=6).as_json()]
)
def test_a_host_that_talks_nonsense_is_lost(failure: object) -> None:
    ours, theirs = connected()
    head, peer = Link({1: Line(ours)}, hosts=2, workers=6), Line(theirs)
    peer.send("failed", failure=failure)
    (lost,) = heard(head, bool)
    assert isinstance(lost, Failure)
    assert (lost.who, lost.host) == (HOST, 1)
    peer.hang_up()


def test_a_large_message_arrives_whole_while_others_wait() -> None:
    ours, theirs = connected()
    sender, receiver = Line(ours), Line(theirs)
    text = "x" * 3_000_000
    sender.send("large", text=text)
    sender.send("small")
    found = []
    limit = time.monotonic() + 10
    while len(found) < 2:
        assert time.monotonic() < limit
        sender.take()
        message = receiver.take()
        found += [message] if message else []
    assert [message["kind"] for message in found] == ["large", "small"]
    assert found[0]["text"] == text
    sender.hang_up()
    receiver.hang_up()


def test_outcomes_survive_the_journey() -> None:
    whole = Outcome(statuses={3: 137}, failure=KILLED, stop=15, before_start=True, resumable=True)
    assert Outcome.from_json(whole.as_json()) == whole
