import signal

import pytest
from machines import DESK, SERVER, plan_for

from mindbooth.launch.options import LaunchConfig
from mindbooth.launch.verdict import (
    HOST,
    MSRUN,
    SCHEDULER,
    Failure,
    Outcome,
    describe,
    exit_status,
    farewell,
    last_words,
    together,
)

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)


def failure(who: int | str, status: int, **more: object) -> Failure:
    return Failure(who=who, host=0, status=status, **more)  # type: ignore


@pytest.mark.parametrize(
    ("wait_status", "status"), [(0, 0), (3 << 8, 3), (75 << 8, 75), (9, 137), (15, 143), (139, 139)]
)
def test_statuses_are_what_a_shell_would_say(wait_status: int, status: int) -> None:
    assert exit_status(wait_status) == status


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome(statuses={0: 0, 1: 0}), 0),
        (Outcome(statuses={0: 0, 1: 0}, stop=TERM), 0),
        (Outcome(statuses={0: 75, 1: 75}, stop=TERM), 75),
        (Outcome(statuses={0: 75, 1: 75}), 75),
        (Outcome(statuses={0: 75, 1: 0}, stop=TERM), 1),
        (Outcome(statuses={0: 75, 1: 137}, failure=failure(1, 137), stop=TERM), 137),
        (Outcome(stop=TERM, before_start=True), 75),
        (Outcome(stop=INT, before_start=True), 130),
        (Outcome(statuses={0: 75, 1: 75}, stop=INT), 130),
        (Outcome(statuses={1: 3, 0: 143}, failure=failure(1, 3)), 3),
        (Outcome(statuses={1: 2, 0: 2}, failure=failure(1, 2)), 2),
        (Outcome(failure=failure(MSRUN, 1)), 1),
        (Outcome(failure=failure(SCHEDULER, 1)), 1),
        (Outcome(failure=failure(HOST, 1)), 1),
    ],
)
def test_the_jobs_status(outcome: Outcome, status: int) -> None:
    assert outcome.status == status


@pytest.mark.parametrize(
    ("outcome", "may"),
    [
        (Outcome(failure=failure(1, 137)), True),
        (Outcome(failure=failure(1, 2, words=("Traceback", "x"))), True),
        (Outcome(failure=failure(1, 1, hung=True)), True),
        (Outcome(failure=failure(SCHEDULER, 1)), True),
        (Outcome(failure=failure(1, 137), stop=TERM), False),
        (Outcome(failure=failure(1, 2, words=("mindbooth: error: no such folder.",))), False),
        (Outcome(failure=failure(HOST, 1)), False),
        (Outcome(statuses={0: 0}), False),
        (Outcome(statuses={0: 75}), False),
    ],
)
def test_only_what_may_end_better_is_tried_again(outcome: Outcome, may: bool) -> None:
    assert outcome.may_restart is may


def test_what_the_hosts_told_is_joined_and_the_first_failure_decides() -> None:
    first, later = failure(3, 137), failure(0, 1)
    whole = together(
        [
            Outcome(statuses={0: 1, 1: 75}, failure=later, resumable=True),
            Outcome(statuses={2: 0, 3: 137}, failure=first, stop=TERM),
        ],
        first,
    )
    assert whole == Outcome(
        statuses={0: 1, 1: 75, 2: 0, 3: 137}, failure=first, stop=TERM, resumable=True
    )
    assert together([Outcome(), Outcome(failure=later)], None).failure == later


PLAN = plan_for(LaunchConfig(devices=(4, 6)), SERVER)


@pytest.mark.parametrize(
    ("what", "first"),
    [
        (failure(1, 3), "rank 1 (host server, device 6) ended with status 3"),
        (
            failure(1, 137),
            "rank 1 (host server, device 6) was ended by SIGKILL (status 137): "
            "often the out-of-memory killer",
        ),
        (
            failure(0, 137, why="not done 60 s after the stop request"),
            "rank 0 (host server, device 4) was ended by SIGKILL (status 137): "
            "not done 60 s after the stop request",
        ),
        (failure(0, 139), "rank 0 (host server, device 4) was ended by SIGSEGV (status 139)"),
        (failure(SCHEDULER, 1), "msrun's scheduler (host server) ended with status 1"),
        (failure(MSRUN, 2), "msrun (host server) ended with status 2"),
        (failure(HOST, 1, why="was lost: no word"), "host server was lost: no word"),
        (
            failure(1, 1, why="nothing has moved for 9 s", hung=True),
            "rank 1 (host server, device 6) seems to hang: nothing has moved for 9 s",
        ),
    ],
)
def test_a_failure_names_rank_host_device_and_signal(what: Failure, first: str) -> None:
    assert describe(what, PLAN)[0] == f"mindbooth: {first}"


def test_the_last_twenty_lines_follow_the_path_of_the_log() -> None:
    log = "\n".join(f"line {i}" for i in range(30))
    what = failure(1, 1, log="/l/worker_1.log", words=last_words(log, 1))
    lines = describe(what, PLAN)
    assert lines[1] == "mindbooth: log /l/worker_1.log, last lines:"
    assert lines[2:] == [f"  | line {i}" for i in range(10, 30)]


def test_an_input_error_is_all_that_is_said() -> None:
    log = "noise\nmindbooth: error: no such folder.\n"
    what = failure(1, 2, log="/l/worker_1.log", words=last_words(log, 2))
    assert describe(what, PLAN) == ["mindbooth: error: no such folder."]


def test_a_cpu_worker_has_no_device() -> None:
    plan = plan_for(LaunchConfig(nproc_per_node=2), DESK)
    line = describe(failure(1, 1), plan)[0]
    assert line == "mindbooth: rank 1 (host desk, CPU worker 1) ended with status 1"


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome(statuses={0: 0}), []),
        (Outcome(statuses={0: 1}, failure=failure(0, 1)), []),
        (Outcome(statuses={0: 75}, resumable=True), ["stopped on request, everything saved"]),
        (Outcome(statuses={0: 75}), ["stopped before training began; the cache keeps what was"]),
        (Outcome(statuses={0: 0, 1: 75}), ["did not leave alike (rank 0: 0, rank 1: 75)"]),
        (Outcome(stop=TERM, before_start=True), ["before training began"]),
        (Outcome(stop=INT, failure=failure(0, 137)), ["interrupted"]),
        (Outcome(stop=INT, statuses={0: 75}, resumable=True), ["interrupted, everything saved"]),
    ],
)
def test_the_last_line_says_what_the_status_means(outcome: Outcome, told: list[str]) -> None:
    lines = farewell(outcome)
    assert len(lines) == len(told)
    assert all(words in line for words, line in zip(told, lines, strict=True))
