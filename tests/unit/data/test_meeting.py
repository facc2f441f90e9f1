"""Real sockets; ranks are threads, and processes where one is killed, stopped or ends."""

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing, suppress
from typing import TypeVar

import numpy as np
import pytest

from mindbooth.data.chair import FAILED, MEET, RANK
from mindbooth.data.errors import DataError, RankFailed, RankStopped
from mindbooth.data.lines import pack
from mindbooth.data.meeting import GOODBYE_SECONDS, Meeting, invitation, invited

T = TypeVar("T")
LIMIT = 30
SHORT = 0.2  # for what would happen at once if it did
Started = Callable[..., "subprocess.Popen[str]"]
HOST = """
import ctypes, json, os, sys
from mindbooth.data.errors import *
from mindbooth.data.meeting import Meeting
meeting = Meeting.host(int(sys.argv[1]))
print(json.dumps(meeting.invitation), flush=True)
"""
GUEST = """
import json, os, signal, sys
from mindbooth.data.errors import *
from mindbooth.data.meeting import Meeting
invitation, rank, size = json.loads(sys.argv[1])
meeting = Meeting.join(invitation, rank, size)
print("joined", flush=True)
"""


@pytest.fixture
def start() -> Iterator[Started]:
    """Starts a program; what is left of it is ended after the test."""
    with ExitStack() as stack:

        def start(program: str, *words: object) -> "subprocess.Popen[str]":
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, *map(str, words)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def meet() -> Iterator[Callable[..., list[Meeting]]]:
    """The meetings of `size` ranks, but for those that come as processes."""
    with ExitStack() as stack:

        def meet(size: int, absent: tuple[int, ...] = ()) -> list[Meeting]:
            host = Meeting.host(size)
            present = [rank for rank in range(1, size) if rank not in absent]
            ranks = [host, *(Meeting.join(host.invitation, rank, size) for rank in present)]
            stack.callback(together, ranks, Meeting.close)
            return ranks

        yield meet


def guest(
    start: Started, host: Meeting, rank: int, size: int, then: str
) -> "subprocess.Popen[str]":
    process = start(GUEST + then, json.dumps([host.invitation, rank, size]))
    assert read(process) == "joined"
    return process


def read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def soon(act: Callable[..., T], *words: object) -> "Future[T]":
    """What it returns or raises, from a thread that holds up no test should it never end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act(*words))
        except Exception as err:
            future.set_exception(err)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(ranks: list[Meeting], act: Callable[[Meeting], T]) -> list[T]:
    """What it returns for each, all at once."""
    return [future.result(LIMIT) for future in [soon(act, meeting) for meeting in ranks]]


def told(meeting: Meeting) -> BaseException | None:
    """What a rank that waits for all is told."""
    return soon(meeting.at, "what never comes about").exception(LIMIT)


def test_nobody_leaves_before_everybody_has_come(meet: Callable[..., list[Meeting]]) -> None:
    *early, late = meet(4)
    waiting = [soon(meeting.at, "compiled") for meeting in early]
    assert not wait(waiting, timeout=SHORT).done
    late.at("compiled")
    assert not wait(waiting, timeout=LIMIT).not_done


def test_what_is_exchanged_comes_by_rank(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(4)
    brought = [b"zero", b"", b"two\0\xff", b"3"]
    got = together(ranks, lambda m: m.exchange("words", brought[ranks.index(m)]))
    assert got == [brought] * 4


def test_nothing_brought_is_nothing_for_each(meet: Callable[..., list[Meeting]]) -> None:
    got = together(meet(3), lambda m: m.exchange("words", b""))
    assert got == [[b"", b"", b""]] * 3


def test_twenty_megabytes_of_each(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(3)
    brought = [np.random.default_rng(rank).bytes(20_000_000) for rank in range(3)]
    got = together(ranks, lambda m: m.exchange("much", brought[ranks.index(m)]) == brought)
    assert got == [True] * 3


def test_many_ranks_many_times(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(96)

    def often(meeting: Meeting) -> set[bytes]:
        names = [f"checkpoint {i}" for i in range(10)]
        return {b"".join(meeting.exchange(name, name.encode())) for name in names}

    got = together(ranks, often)
    assert got == [{f"checkpoint {i}".encode() * 96 for i in range(10)}] * 96


def test_threads_of_one_rank_meet_apart(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(2)

    def crosswise(meeting: Meeting) -> None:
        names = ["a", "b"] if meeting is ranks[0] else ["b", "a"]
        for future in [soon(meeting.at, name) for name in names]:
            future.result(LIMIT)

    together(ranks, crosswise)


def test_a_rank_that_does_not_read_holds_up_nobody(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(4, absent=(3,))
    address, port, token = invited(ranks[0].invitation)
    with socket.create_connection((address, port)) as slow:
        slow.sendall(pack((token, RANK.pack(3))) + pack((MEET, b"much", b"")))
        got = together(ranks, lambda m: len(m.exchange("much", bytes(20_000_000))))
        assert got == [4] * 3
        slow.sendall(pack((MEET, b"more", b"")))
        together(ranks, lambda m: m.at("more"))


def test_a_rank_that_is_killed_is_gone(meet: Callable[..., list[Meeting]], start: Started) -> None:
    ranks = meet(4, absent=(2,))
    process = guest(start, ranks[0], 2, 4, "meeting.at('met')")
    waiting = [soon(told, meeting) for meeting in ranks]
    process.kill()
    for future in waiting:
        error = future.result()
        assert isinstance(error, RankFailed)
        assert str(error).startswith("rank 2 is gone")


def test_rank_0_that_is_killed_is_gone(start: Started) -> None:
    process = start(HOST + "meeting.at('met')", 3)
    words = json.loads(read(process))
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(Meeting.join(words, rank, 3))) for rank in (1, 2)]
        waiting = [soon(told, meeting) for meeting in ranks]
        process.kill()
        for future in waiting:
            assert str(future.result()).startswith("rank 0 is gone")
        with pytest.raises(RankFailed, match="rank 0 is gone"):
            ranks[0].check()


def test_rank_0_that_ended_is_not_reached(start: Started) -> None:
    process = start(HOST, 2)
    words = json.loads(read(process))
    process.wait(LIMIT)
    with pytest.raises(RankFailed, match=f"rank 1 does not reach rank 0 at .* port {words[0]} "):
        Meeting.join(words, 1, 2)


def test_rank_0_may_keep_its_interpreter_to_itself(start: Started) -> None:
    hold = "ctypes.PyDLL(None).sleep(1)\nmeeting.at('compiled')\nmeeting.close()"
    words = json.loads(read(start(HOST + hold, 3)))
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(Meeting.join(words, rank, 3))) for rank in (1, 2)]
        together(ranks, lambda m: m.at("compiled"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError, "caption.txt is empty"),
        (RankFailed, "rank 1: caption.txt is empty"),
        (RankStopped, "caption.txt is empty"),
        (ZeroDivisionError, "caption.txt is empty"),
    ],
)
@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_failure_is_told_to_all(
    meet: Callable[..., list[Meeting]], error: type[Exception], words: str, who: int
) -> None:
    ranks = meet(3)
    others = [meeting for meeting in ranks if meeting is not ranks[who]]
    waiting = [soon(told, meeting) for meeting in others]
    ranks[who].fail("caption.txt is empty", error)
    heard = [future.result() for future in waiting]
    expected = RankFailed if error is ZeroDivisionError else error
    assert [type(each) for each in heard] == [expected] * 2
    assert {str(each) for each in heard} == {words.replace("rank 1", f"rank {who}")}
    for meeting in others:
        with pytest.raises(expected):
            meeting.check()


def test_the_first_failure_counts(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(3)
    ranks[1].fail("the cause", DataError)
    assert str(told(ranks[2])) == "the cause"
    ranks[2].fail("what follows", RankFailed)
    assert [str(told(meeting)) for meeting in ranks] == ["the cause"] * 3


def test_a_failure_without_words_points_to_the_log(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(2)
    ranks[1].fail("", RankFailed)
    assert str(told(ranks[0])) == "rank 1: its own log says why"


@pytest.mark.parametrize("then", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_rank_may_end_once_it_has_told_its_failure(
    meet: Callable[..., list[Meeting]], start: Started, then: str
) -> None:
    ranks = meet(3, absent=(2,))
    guest(start, ranks[0], 2, 3, f"meeting.fail('full disk \\udcff', DataError)\n{then}")
    assert [str(told(meeting)) for meeting in ranks] == ["full disk ?"] * 2


def test_rank_0_may_end_once_it_has_told_its_failure_to_those_who_are_busy(start: Started) -> None:
    host = start(HOST + "input()\nmeeting.fail('full disk', DataError)\nos._exit(1)", 2)
    words = json.loads(read(host))
    then = "input()\ntry: meeting.at('met')\nexcept DataError as err: print(err)"
    busy = start(GUEST + then, json.dumps([words, 1, 2]))
    assert read(busy) == "joined"
    busy.send_signal(signal.SIGSTOP)
    host.communicate("fail\n", timeout=LIMIT)
    busy.send_signal(signal.SIGCONT)
    assert busy.communicate("go on\n", timeout=LIMIT)[0] == "full disk\n"


def test_a_failure_is_told_to_those_who_come_later(meet: Callable[..., list[Meeting]]) -> None:
    first, second = meet(3, absent=(2,))
    second.fail("too early", DataError)
    late = Meeting.join(first.invitation, 2, 3)
    with closing(late):
        assert str(told(late)) == "too early"


def test_rank_0_waits_for_others_to_tell_them_its_failure(start: Started) -> None:
    host = start(HOST + "meeting.fail('no model', DataError)\nos._exit(1)", 2)
    with closing(Meeting.join(json.loads(read(host)), 1, 2)) as late:
        assert str(told(late)) == "no model"


def test_failing_and_leaving_are_over_in_time_where_others_never_come() -> None:
    host, began = Meeting.host(2), time.monotonic()
    host.fail("no model", DataError)
    host.close()
    assert GOODBYE_SECONDS <= time.monotonic() - began < 2 * GOODBYE_SECONDS


def test_leaving_after_the_last_meeting_is_no_failure(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(3)
    together(ranks, lambda m: m.at("end"))
    for meeting in ranks:
        meeting.close()
        for other in ranks:
            other.check()


def test_a_rank_that_has_left_is_not_waited_for(meet: Callable[..., list[Meeting]]) -> None:
    ranks = meet(3)
    ranks[2].close()
    assert "rank 2 has left before all met at" in str(told(ranks[1]))


def test_rank_0_that_has_left_is_not_waited_for(meet: Callable[..., list[Meeting]]) -> None:
    host, other = meet(2)
    host.close()
    assert "rank 0 has left" in str(told(other))


def test_rank_0_that_has_left_tells_those_who_come_later(start: Started) -> None:
    host = start(HOST + "meeting.close()", 2)
    with closing(Meeting.join(json.loads(read(host)), 1, 2)) as late:
        assert host.wait(LIMIT) == 0
        assert "rank 0 has left" in str(told(late))
        late.check()


def test_a_rank_that_is_killed_later_than_it_left_has_not_failed(
    meet: Callable[..., list[Meeting]], start: Started
) -> None:
    host, other = meet(3, absent=(2,))
    process = guest(start, host, 2, 3, "meeting.close()\nprint('left', flush=True)\ninput()")
    assert read(process) == "left"
    process.kill()
    process.wait(LIMIT)
    other.fail("the first failure", DataError)
    assert str(told(host)) == "the first failure"


def test_after_the_end_nothing_is_raised(meet: Callable[..., list[Meeting]]) -> None:
    for meeting in meet(2):
        meeting.close()
        meeting.close()
        meeting.fail("nobody is there", DataError)
        meeting.check()


def test_a_stop_request_ends_the_waiting(
    meet: Callable[..., list[Meeting]], start: Started
) -> None:
    (host,) = meet(2, absent=(1,))
    then = """
def stop(number, frame): raise SystemExit(75)
signal.signal(signal.SIGTERM, stop)
try:
    print("ready", flush=True)
    meeting.at("compiled")
except SystemExit:
    meeting.fail("stopped", RankStopped)
    raise
"""
    process = guest(start, host, 1, 2, then)
    assert read(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert isinstance(told(host), RankStopped)
    assert process.wait(LIMIT) == 75


STRANGERS = {
    "wrong token": pack((bytes(16), RANK.pack(1))),
    "another size of token": pack((b"", RANK.pack(1))),
    "a browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no message": bytes(7) + b"\x04" + b"\xff" * 4,
    "a failure": pack((FAILED, b"DataError", b"lies")),
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_sent_away(words: bytes) -> None:
    with closing(Meeting.host(2)) as host:
        address, port, _ = invited(host.invitation)
        with socket.create_connection((address, port), timeout=LIMIT) as stranger:
            stranger.sendall(words)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        with closing(Meeting.join(host.invitation, 1, 2)) as other:
            together([host, other], lambda m: m.at("met"))


def test_a_rank_is_let_in_once() -> None:
    with closing(Meeting.host(3)) as host, closing(Meeting.join(host.invitation, 1, 3)) as first:
        address, port, token = invited(host.invitation)
        for rank in (0, 1, 3):
            with socket.create_connection((address, port), timeout=LIMIT) as double:
                double.sendall(pack((token, RANK.pack(rank))))
                assert double.recv(1) == b"", rank
        with closing(Meeting.join(host.invitation, 2, 3)) as second:
            together([host, first, second], lambda m: m.at("met"))


def test_when_all_have_come_nobody_else_is_let_in() -> None:
    with closing(Meeting.host(2)) as host:
        address, port, _ = invited(host.invitation)
        silent = socket.create_connection((address, port), timeout=LIMIT)
        with silent, closing(Meeting.join(host.invitation, 1, 2)) as other:
            together([host, other], lambda m: m.at("met"))
            assert silent.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=LIMIT)


def test_who_never_comes_is_named() -> None:
    host = Meeting.host(4, seconds=SHORT)
    with closing(host), closing(Meeting.join(host.invitation, 2, 4)) as other:
        for meeting in (host, other):
            assert str(told(meeting)).endswith("have not joined the others: 1, 3")


@pytest.mark.parametrize("scheduler", [None, "127.0.0.1", "localhost", "::1"])
def test_rank_0_is_reached_over_the_scheduler_s_network(scheduler: str | None) -> None:
    if scheduler == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as err:
            pytest.skip(f"this host has no IPv6: {err}")
    with closing(Meeting.host(2, scheduler=scheduler)) as host:
        if scheduler in ("127.0.0.1", "::1"):
            assert invited(host.invitation)[0] == scheduler
        with closing(Meeting.join(host.invitation, 1, 2)) as other:
            together([host, other], lambda m: m.at("met"))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.255.0.9", "::1", "2001:db8::ff:1"])
def test_an_invitation_travels_in_fp32(address: str) -> None:
    numbers = invitation(address, 65535, b"\xff" * 16)
    assert len(numbers) == Meeting.INVITATION
    travelled = [int(number) for number in np.array(numbers, np.float32)]
    assert invited(travelled) == (address, 65535, b"\xff" * 16)


def test_each_run_has_a_token_of_its_own() -> None:
    with closing(Meeting.host(1)) as one, closing(Meeting.host(1)) as other:
        assert invited(one.invitation)[2] != invited(other.invitation)[2]


def test_one_rank_meets_nobody() -> None:
    before = threading.active_count()
    with closing(Meeting.alone()) as meeting:
        meeting.at("met")
        assert meeting.exchange("words", b"mine") == [b"mine"]
        meeting.fail("nobody hears it", DataError)
        meeting.check()
        assert threading.active_count() == before


def limited(soft: int, hard: int) -> str:
    return f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"


def test_there_are_as_many_open_files_as_ranks(start: Started) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 1024:
        pytest.skip(f"this host allows {hard} open files")
    process = start(limited(16, hard) + HOST + "meeting.at('met')\nmeeting.close()", 64)
    words = json.loads(read(process))
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(Meeting.join(words, r, 64))) for r in range(1, 64)]
        together(ranks, lambda m: m.at("met"))


def test_too_few_open_files_are_told(start: Started) -> None:
    then = "\ntry: Meeting.host(64)\nexcept DataError as err: print(err, flush=True)"
    process = start(limited(64, 64) + HOST.split("meeting =")[0] + then)
    assert "allows 64 a process" in read(process)
