import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mindbooth.launch import processes
from mindbooth.launch.processes import SCHEDULER, Member, member, parse_environ, parse_parent

WORKER = {
    "MINDBOOTH_LAUNCHER": "t",
    "MS_ROLE": "MS_WORKER",
    "RANK_ID": "1",
    "RANK_SIZE": "2",
    "DEVICE_ID": "1",
}
SLEEP = "import sys, time; sys.stdout.write('up'); sys.stdout.flush(); time.sleep(600)"


def test_environ_is_parsed_as_the_kernel_writes_it() -> None:
    assert parse_environ(b"A=1\0EMPTY=\0B=x=y\nz\0junk\0") == {"A": "1", "EMPTY": "", "B": "x=y\nz"}
    assert parse_environ(b"") == {}


def test_environ_comes_back_whole() -> None:
    env = {"NAME": "a b", "BYTES": os.fsdecode(b"\xff")}
    raw = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())
    assert parse_environ(raw) == env


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, Member(rank=1)),
        ({"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}, SCHEDULER),
        ({"MINDBOOTH_LAUNCHER": "other"}, None),
        ({"RANK_ID": "not yet"}, None),
    ],
)
def test_a_process_is_known_by_its_environment(
    change: dict[str, str], found: Member | None
) -> None:
    assert member(WORKER | change, "t") == found


def test_msrun_itself_is_no_member() -> None:
    assert member({"MINDBOOTH_LAUNCHER": "t"}, "t") is None


def test_a_parent_is_read_whatever_the_process_is_called() -> None:
    assert parse_parent("12 (a) R 9 (b) S 5 12 12 0 -1") == 5
    assert parse_parent("") is None


@pytest.mark.parametrize(
    ("mask", "ignored"), [("0000000000004000", True), ("0000000000000002", False)]
)
def test_an_ignored_signal_is_read_from_the_mask(mask: str, ignored: bool) -> None:
    status = f"Name:\tpython\nSigBlk:\t0000000000004000\nSigIgn:\t{mask}\nSigCgt:\t0\n"
    assert processes.ignores(status, signal.SIGTERM) is ignored
    assert not processes.ignores("", signal.SIGTERM)


@pytest.fixture
def carrier() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-S", "-c", SLEEP]
    env = {"MINDBOOTH_LAUNCHER": f"test-{os.getpid()}"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        yield process
        process.kill()


def test_a_sweep_ends_what_carries_the_token_and_nothing_else(
    carrier: subprocess.Popen[bytes],
) -> None:
    token = f"test-{os.getpid()}"
    assert processes.carriers(token) == {carrier.pid}
    assert processes.parent(carrier.pid) == os.getpid()
    assert processes.sweep("another token") == set()
    assert carrier.poll() is None
    assert processes.sweep(token) == set()
    assert carrier.wait() == -signal.SIGKILL


def test_a_process_that_is_gone_says_nothing(carrier: subprocess.Popen[bytes]) -> None:
    carrier.kill()
    carrier.wait()
    assert not processes.exists(carrier.pid)
    assert processes.environ(carrier.pid) == {}
    assert processes.parent(carrier.pid) is None
    processes.send(carrier.pid, signal.SIGTERM)
