import signal

import pytest

from mindbooth.launch.ssh import job_status
from mindbooth.launch.ssh_client import client_command, complaint

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("came", "stop", "status"),
    [
        ([0, 0], None, 0),
        ([75, 75], TERM, 75),
        ([75, 75], None, 75),
        ([137, 137], None, 137),
        ([2, 75], None, 2),
        ([75, 2], None, 2),
        ([137, 1], None, 137),
        ([255, 75], None, 1),
        ([255, 255], None, 1),
        ([1, 255], None, 1),
        ([127, 75], None, 127),
        ([0, 75], TERM, 1),
        ([130, 130], INT, 130),
        ([130, 255], INT, 130),
        ([130, 130], None, 130),
    ],
)
def test_first_failure_decides_the_status(
    came: list[int], stop: signal.Signals | None, status: int
) -> None:
    assert job_status(came, stop) == status


def test_a_host_is_never_taken_for_an_option_of_ssh() -> None:
    *client, end, host, command = client_command("-oProxyCommand=x", "cd /")
    assert (end, host, command) == ("--", "-oProxyCommand=x", "cd /")
    assert client[:2] == ["ssh", "-T"]
    assert "BatchMode=yes" in client


@pytest.mark.parametrize(
    ("status", "last_words", "told"),
    [
        (
            255,
            "ssh: connect to host b port 22: No route to host",
            "host b: ssh: connect to host b port 22: No route to host (status 255 of ssh). "
            "Try: ssh b true",
        ),
        (255, "", "host b: ended without a word (status 255 of ssh). Try: ssh b true"),
        (
            127,
            "env: '/x/python': No such file or directory",
            "host b: env: '/x/python': No such file or directory (status 127 of ssh). Every host "
            "needs this folder and this Python, at the same paths.",
        ),
        (3, "mindbooth: rank 1 ended with status 3", None),
        (0, "", None),
    ],
)
def test_a_host_without_a_launcher_is_named_with_what_to_do(
    status: int, last_words: str, told: str | None
) -> None:
    assert complaint("b", status, last_words) == told
