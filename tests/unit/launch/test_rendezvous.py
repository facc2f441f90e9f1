"""The launchers find one another over real sockets; each host is a thread."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from mindbooth.launch import rendezvous
from mindbooth.launch.link import Line, encode
from mindbooth.launch.options import LaunchError
from mindbooth.launch.rendezvous import AbsentError, Hello, Interrupted, Party, Reception, objection

HOST_0 = Hello(
    key="slurm 7", work="train", version="1", nnodes=3, node_rank=0, name="n0", address="10.0.0.1",
    target="CPU", devices=2, flags="f", table="{}", attempt=1, clock=time.time(),
)  # fmt: skip
NAMES = ("n0", "n1", "n2")


def host(node_rank: int, **changes: object) -> Hello:
    usual = {"node_rank": node_rank, "name": f"n{node_rank}", "address": f"10.0.0.{node_rank + 1}"}
    return replace(HOST_0, **(usual | changes))  # type: ignore


def wait(_: float, others: Sequence[object] = ()) -> list[signal.Signals]:
    time.sleep(0.01)
    return []


class Meeting:
    """Host 0 at its door, and those who call."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.reception = Reception("127.0.0.1", self.port)
        self.told: list[str] = []

    def gather(
        self,
        mine: Hello = HOST_0,
        seconds: float = 10,
        wait: Callable[..., list[signal.Signals]] = wait,
    ) -> "Future[tuple[tuple[Hello, ...], dict[int, Line]]]":
        return self.threads.submit(
            self.reception.gather,
            mine,
            names=NAMES,
            seconds=seconds,
            wait=wait,
            tell=self.told.append,
            command_of=lambda rank: f"command {rank}",
        )

    def call(self, hello: Hello, seconds: float = 10) -> "Future[Party]":
        return self.threads.submit(
            rendezvous.call,
            "127.0.0.1",
            self.port,
            lambda _: hello,
            seconds=seconds,
            wait=wait,
            tell=lambda _: None,
        )


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    with ThreadPoolExecutor(6) as threads:
        made = Meeting(threads)
        yield made
        made.reception.close()


def test_all_hosts_learn_of_all(meeting: Meeting) -> None:
    calls = [meeting.call(host(2)), meeting.call(host(1, attempt=4))]
    hellos, lines = meeting.gather().result()
    assert [hello.name for hello in hellos] == ["n0", "n1", "n2"]
    rendezvous.welcome(hellos, lines, job="token", attempt=4)
    parties = [call.result() for call in calls]
    assert {(party.hellos, party.job, party.attempt) for party in parties} == {(hellos, "token", 4)}
    assert "host n1 is here, 2 of 3" in meeting.told or "host n1 is here, 3 of 3" in meeting.told


def test_all_start_together_with_one_table(meeting: Meeting) -> None:
    calls = [meeting.call(host(1)), meeting.call(host(2))]
    party = rendezvous.welcome(*meeting.gather().result(), job="token", attempt=1)
    readies = [
        meeting.threads.submit(rendezvous.ready, call.result(), digest="d", shared=s, wait=wait)
        for call, s in zip(calls, (True, False), strict=True)
    ]
    assert rendezvous.start_together(party, "d", wait) == (2,)
    assert [ready.result() for ready in readies] == [None, None]


def test_another_table_stops_all(meeting: Meeting) -> None:
    calls = [meeting.call(host(1)), meeting.call(host(2))]
    party = rendezvous.welcome(*meeting.gather().result(), job="token", attempt=1)
    readies = [
        meeting.threads.submit(rendezvous.ready, call.result(), digest=d, shared=True, wait=wait)
        for call, d in zip(calls, ("d", "other"), strict=True)
    ]
    with pytest.raises(LaunchError, match="n2 made another rank table than n0: other"):
        rendezvous.start_together(party, "d", wait)
    for ready in readies:
        with pytest.raises(LaunchError, match="another rank table"):
            ready.result()


def test_a_host_that_never_comes_is_named_with_its_command(meeting: Meeting) -> None:
    call = meeting.call(host(1))
    with pytest.raises(AbsentError, match=r"host n2 \(node rank 2\) has not come .* command 2"):
        meeting.gather(seconds=0.5).result()
    with pytest.raises(AbsentError, match="n2"):
        call.result()


def test_without_host_0_the_others_say_where_they_looked(meeting: Meeting) -> None:
    meeting.reception.close()
    with pytest.raises(AbsentError, match=f"did not answer at 127.0.0.1, port {meeting.port}"):
        meeting.call(host(1), seconds=0.3).result()


def test_a_host_may_come_before_host_0_does(meeting: Meeting) -> None:
    meeting.reception.close()
    told: list[str] = []
    call = meeting.threads.submit(
        rendezvous.call, "127.0.0.1", meeting.port, lambda _: host(1, nnodes=2),
        seconds=10, wait=wait, tell=told.append,
    )  # fmt: skip
    while not told:
        time.sleep(0.01)
    meeting.reception = Reception("127.0.0.1", meeting.port)
    hellos, lines = meeting.gather(mine=replace(HOST_0, nnodes=2)).result()
    rendezvous.welcome(hellos, lines, job="token", attempt=1)
    assert call.result().job == "token"


def test_a_stop_at_host_0_stops_those_who_wait(meeting: Meeting) -> None:
    calls = [meeting.call(host(1))]

    def stop(_: float, others: Sequence[object] = ()) -> list[signal.Signals]:
        time.sleep(0.01)
        return [signal.SIGINT] if meeting.told else []

    with pytest.raises(Interrupted):
        meeting.gather(wait=stop).result()
    with pytest.raises(Interrupted) as stopped:
        calls[0].result()
    assert stopped.value.number is signal.SIGINT


def test_a_launcher_of_another_job_is_sent_away(meeting: Meeting) -> None:
    calls = [meeting.call(host(1, key="slurm 8")), meeting.call(host(1)), meeting.call(host(2))]
    meeting.gather().result()
    with pytest.raises(LaunchError, match=r"belongs to another job \(slurm 7\)"):
        calls[0].result()


def test_who_says_something_else_is_sent_away(meeting: Meeting) -> None:
    with socket.create_connection(("127.0.0.1", meeting.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with socket.create_connection(("127.0.0.1", meeting.port)) as other:
            other.sendall(encode("hello", **{**asdict(host(1)), "attempt": "many"}))
            calls = [meeting.call(host(1)), meeting.call(host(2))]
            meeting.gather().result()
            assert stranger.recv(100) == b""
            assert other.recv(100) == b""
    assert calls


def test_an_objection_is_told_at_both_ends(meeting: Meeting) -> None:
    call = meeting.call(host(1, devices=1))
    for end in (meeting.gather(), call):
        with pytest.raises(LaunchError, match=r"n1 \(node rank 1\) has devices: 1, n0 .* 2\."):
            end.result()


def test_a_host_that_goes_away_may_come_again(meeting: Meeting) -> None:
    gathered = meeting.gather()
    line = Line(socket.create_connection(("127.0.0.1", meeting.port)))
    line.send("hello", **asdict(host(1)))
    while not any("n1 is here" in told for told in meeting.told):
        time.sleep(0.01)
    line.hang_up()
    while "host n1 went away again" not in meeting.told:
        time.sleep(0.01)
    calls = [meeting.call(host(1)), meeting.call(host(2))]
    assert len(gathered.result()[0]) == 3
    assert calls


@pytest.mark.parametrize(
    ("hello", "told"),
    [
        (host(1, version="2"), "runs mindbooth 2"),
        (host(1, nnodes=4), "--nnodes 4"),
        (host(1, work="precompute"), "was told --job precompute, n0 (node rank 0) train"),
        (host(1, target="Ascend"), "trains on Ascend"),
        (host(1, devices=3), "has devices: 3"),
        (host(1, flags="g"), "other training flags"),
        (host(3), "node rank 3 of 3"),
        (host(0, name="n9", address="10.0.0.9"), "node rank 0 of 3"),
        (host(2), "both came as node rank 2"),
        (host(1, address="10.0.0.1"), "both have the address 10.0.0.1"),
        (host(1, address="10.0.0.3"), "both have the address 10.0.0.3"),
    ],
)
def test_hosts_that_do_not_fit_are_named_with_what_they_have(hello: Hello, told: str) -> None:
    said = objection(hello, HOST_0, [host(2)])
    assert said is not None
    assert told in said
    assert hello.name in said


def test_a_host_that_fits_is_welcome() -> None:
    assert objection(host(1), HOST_0, [host(2)]) is None
