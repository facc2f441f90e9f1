import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from mindbooth.launch import preflight
from mindbooth.launch.options import LaunchError

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
ASK_AS_NOBODY = """
import os, sys
from mindbooth.launch import preflight
os.setuid(65534)
print(preflight.holder("127.0.0.1", int(sys.argv[1])))
"""


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A process that listens: its pid and its port."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize("asked", ["127.0.0.1", "0.0.0.0"])
def test_who_holds_a_port_is_named(listener: tuple[int, int], asked: str) -> None:
    pid, port = listener
    user = psutil.Process().username()
    assert preflight.holder(asked, port) == f"{psutil.Process(pid).name()} (pid {pid}, user {user})"


def test_a_port_is_free_as_soon_as_its_holder_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert preflight.holder("127.0.0.1", port) is not None
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # the server's side waits (TIME_WAIT) after this
        client.close()
    assert preflight.holder("127.0.0.1", port) is None


def test_a_port_of_another_address_is_free() -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        assert preflight.holder("127.0.0.1", server.getsockname()[1]) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_not_named_but_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = subprocess.run(
            [sys.executable, "-c", ASK_AS_NOBODY, str(server.getsockname()[1])],
            capture_output=True,
            text=True,
            check=True,
        )
    assert told.stdout.strip() == preflight.UNSEEN


@pytest.mark.parametrize(
    ("several_hosts", "advice"),
    [(True, "the same on every host"), (False, "or none, and a free one is found")],
)
def test_a_taken_port_is_one_line_with_number_holder_and_advice(
    several_hosts: bool, advice: str
) -> None:
    error = preflight.port_taken(
        "10.0.0.1",
        23456,
        "python (pid 7, user anna)",
        source="follows from job 42",
        several_hosts=several_hosts,
    )
    assert str(error) == (
        "port 23456 of 10.0.0.1 (follows from job 42) is taken by python (pid 7, user anna). "
        f"End that, or pass another --master_port, {advice}."
    )


def test_a_number_stays_what_it_is() -> None:
    assert preflight.resolve("10.1.2.3", several_hosts=True) == "10.1.2.3"


def test_this_host_alone_may_be_reached_by_127() -> None:
    assert preflight.resolve("localhost", several_hosts=False) == "127.0.0.1"


@pytest.mark.parametrize("name", ["localhost", "127.0.1.1", "0.0.0.0"])
def test_several_hosts_refuse_an_address_that_leads_back(name: str) -> None:
    with pytest.raises(LaunchError, match=r"--master_addr .* other hosts can't reach.*/etc/hosts"):
        preflight.resolve(name, several_hosts=True)


@pytest.mark.parametrize("name", ["no-such-host.invalid", "::1", "a..b", "x" * 300])
def test_an_unknown_name_is_told_with_where_it_came_from(name: str) -> None:
    with pytest.raises(LaunchError, match=r"^SLURM_JOB_NODELIST .* no IPv4 address"):
        preflight.resolve(name, several_hosts=True, source="SLURM_JOB_NODELIST")


def test_own_addresses_are_those_that_a_socket_can_take() -> None:
    addresses = preflight.own_addresses()
    assert "127.0.0.1" in addresses
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if not address.startswith("fe80"):  # needs its interface's name too
            with socket.socket(family) as probe:
                probe.bind((address, 0))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, None),
        (-1.9, None),
        (75.04, "the clock of n2 is 75.0 s ahead of this host's"),
        (-3.0, "the clock of n2 is 3.0 s behind this host's"),
    ],
)
def test_a_clock_is_remarked_where_files_would_look_too_old_or_too_new(
    seconds: float, told: str | None
) -> None:
    remark = preflight.clock_remark("n2", seconds)
    assert (remark is None) if told is None else (remark or "").startswith(told)
