from dataclasses import replace
from pathlib import Path

import pytest

from mindbooth.launch import host_findings
from mindbooth.launch.findings import Finding
from mindbooth.launch.peers import Card, Meeting, Peer

HERE = Card(name="n0", address="10.0.0.1", facts={"mindspore": "2.7.1", "CANN": "8.3.RC1"})
THERE = replace(HERE, name="n1", address="10.0.0.2")
WELL = Peer(card=THERE, ahead=0.1, within=0.2, reached=True)


def judge(meeting: Meeting, nnodes: int = 2) -> dict[str, Finding]:
    found = host_findings.hosts(
        meeting, HERE, folder=Path("/shared"), nnodes=nnodes, node_rank=0, waited_seconds=30
    )
    return {one.name: one for one in found}


def test_hosts_that_are_well_are_ok_in_every_line() -> None:
    found = judge(Meeting(peers={1: WELL}))
    assert {one.state for one in found.values()} == {"ok"}
    assert found["hosts"].found == "2 of 2: n0 (10.0.0.1), n1 (10.0.0.2)"


def test_a_host_that_did_not_come_is_named_with_what_it_should_have_run() -> None:
    found = judge(Meeting(peers={1: WELL}), nnodes=3)
    assert found["hosts"].found.startswith("2 of 3: ")
    assert found["host 2"].state == "fault"
    assert "mindbooth doctor --folder /shared --nnodes 3 --node_rank 2" in found["host 2"].remedy


def test_a_host_alone_says_nothing_of_clocks_and_connections() -> None:
    assert set(judge(Meeting())) == {"hosts", "host 1"}


@pytest.mark.parametrize(
    ("peer", "name", "state", "told"),
    [
        (replace(WELL, card=replace(THERE, name="n0")), "names", "fault", "0, 1 are all n0"),
        (
            replace(WELL, card=replace(THERE, address="10.0.0.1")),
            "addresses",
            "fault",
            "0, 1 are all 10.0.0.1",
        ),
        (replace(WELL, reached=False), "reached", "fault", "n1 (10.0.0.2)"),
        (replace(WELL, ahead=75.0), "clocks", "warning", "n1 is 75.0 s ahead"),
        (replace(WELL, ahead=-75.0), "clocks", "warning", "n1 is 75.0 s behind"),
        (replace(WELL, ahead=3.0, within=2.5), "clocks", "ok", "less than 5.5 s"),
        (
            replace(WELL, card=replace(THERE, facts={"mindspore": "2.6.0", "CANN": "8.3.RC1"})),
            "mindspore",
            "fault",
            "2.7.1 here, but n1 has 2.6.0",
        ),
        (
            replace(WELL, card=replace(THERE, facts={"mindspore": "2.7.1"})),
            "CANN",
            "fault",
            "8.3.RC1 here, but n1 has not told",
        ),
    ],
)
def test_what_differs_is_told_with_the_host(peer: Peer, name: str, state: str, told: str) -> None:
    found = judge(Meeting(peers={1: peer}))[name]
    assert found.state == state
    assert told in found.found


def test_many_hosts_are_counted_and_some_shown() -> None:
    peers = {
        rank: replace(WELL, card=replace(THERE, name=f"n{rank}", address=f"10.0.1.{rank}"))
        for rank in range(1, 100)
    }
    found = judge(Meeting(peers=peers), nnodes=100)["hosts"]
    assert found.found.startswith("100 of 100: n0 (10.0.0.1), n1 (")
    assert found.found.endswith(", ...")


def test_a_number_that_two_hosts_have_is_the_one_thing_told() -> None:
    found = judge(Meeting(double="n7"))
    assert list(found) == ["node rank"]
    assert found["node rank"].state == "fault"
    assert "n7" in found["node rank"].found
