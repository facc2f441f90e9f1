import signal
from pathlib import Path

import pytest
from machines import DESK, SERVER, plan_for

from mindbooth.launch.options import LaunchConfig
from mindbooth.launch.processes import SCHEDULER, Member
from mindbooth.launch.verdict import Failure, describe, exit_status, farewell, job_status

ZERO, ONE = Member(rank=0), Member(rank=1)
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("wait_status", "status"), [(0, 0), (3 << 8, 3), (75 << 8, 75), (9, 137), (15, 143), (139, 139)]
)
def test_statuses_are_what_a_shell_would_say(wait_status: int, status: int) -> None:
    assert exit_status(wait_status) == status


@pytest.mark.parametrize(
    ("ended", "failure", "stop", "before_start", "status"),
    [
        ({ZERO: 0, ONE: 0}, None, None, False, 0),
        ({ZERO: 0, ONE: 0, SCHEDULER: 1}, None, None, False, 0),
        ({ZERO: 0, ONE: 0}, None, TERM, False, 0),
        ({ZERO: 75, ONE: 75}, None, TERM, False, 75),
        ({ZERO: 75, ONE: 75}, None, None, False, 75),
        ({ZERO: 75, ONE: 0}, None, TERM, False, 1),
        ({ZERO: 75, ONE: 137}, Failure(who=ONE, status=137), TERM, False, 137),
        ({}, None, TERM, True, 75),
        ({}, None, INT, True, 130),
        ({ZERO: 75, ONE: 75}, None, INT, False, 130),
        ({ONE: 3, ZERO: 143}, Failure(who=ONE, status=3), None, False, 3),
        ({ONE: 2, ZERO: 2}, Failure(who=ONE, status=2), None, False, 2),
        ({}, Failure(who=None, status=1), None, False, 1),
        ({SCHEDULER: 1}, Failure(who=SCHEDULER, status=1), None, False, 1),
    ],
)
def test_the_jobs_status(
    ended: dict[Member, int],
    failure: Failure | None,
    stop: signal.Signals | None,
    before_start: bool,
    status: int,
) -> None:
    got = job_status(failure=failure, stop=stop, ended=ended, before_start=before_start)
    assert got == status


PLAN = plan_for(LaunchConfig(devices=(4, 6)), SERVER)


@pytest.mark.parametrize(
    ("failure", "first"),
    [
        (Failure(who=ONE, status=3), "rank 1 (host server, device 6) ended with status 3"),
        (
            Failure(who=ONE, status=137),
            "rank 1 (host server, device 6) was ended by SIGKILL (status 137): "
            "often the out-of-memory killer",
        ),
        (
            Failure(who=ZERO, status=137, why="not done 60 s after the stop request"),
            "rank 0 (host server, device 4) was ended by SIGKILL (status 137): "
            "not done 60 s after the stop request",
        ),
        (
            Failure(who=ZERO, status=139),
            "rank 0 (host server, device 4) was ended by SIGSEGV (status 139)",
        ),
        (Failure(who=SCHEDULER, status=1), "msrun's scheduler (host server) ended with status 1"),
        (Failure(who=None, status=2), "msrun ended with status 2"),
    ],
)
def test_a_failure_names_rank_host_device_and_signal(failure: Failure, first: str) -> None:
    assert describe(failure, PLAN, log="x", path=None)[0].startswith(f"mindbooth: {first}")


def test_the_last_twenty_lines_follow_the_path_of_the_log() -> None:
    log = "\n".join(f"line {i}" for i in range(30))
    lines = describe(Failure(who=ONE, status=1), PLAN, log=log, path=Path("/l/worker_1.log"))
    assert lines[1] == "mindbooth: log /l/worker_1.log, last lines:"
    assert lines[2:] == [f"  | line {i}" for i in range(10, 30)]


def test_an_input_error_is_all_that_is_said() -> None:
    log = "noise\nmindbooth: error: no such folder.\n"
    assert describe(Failure(who=ONE, status=2), PLAN, log=log, path=None) == [
        "mindbooth: error: no such folder."
    ]


def test_a_cpu_worker_has_no_device() -> None:
    plan = plan_for(LaunchConfig(nproc_per_node=2), DESK)
    line = describe(Failure(who=ONE, status=1), plan, log="", path=None)[0]
    assert line == "mindbooth: rank 1 (host desk, CPU worker 1) ended with status 1"


@pytest.mark.parametrize(
    ("status", "ended", "before_start", "told"),
    [
        (0, {ZERO: 0}, False, []),
        (1, {ZERO: 1}, False, []),
        (75, {ZERO: 75}, False, ["mindbooth: stopped on request, everything saved"]),
        (1, {ZERO: 0, ONE: 75}, False, ["did not leave alike (rank 0: 0, rank 1: 75)"]),
        (75, {}, True, ["before training began"]),
    ],
)
def test_the_last_line_says_what_the_status_means(
    status: int, ended: dict[Member, int], before_start: bool, told: list[str]
) -> None:
    lines = farewell(status, ended=ended, before_start=before_start)
    assert len(lines) == len(told)
    assert all(words in line for words, line in zip(told, lines, strict=True))
