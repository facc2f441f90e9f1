"""The real launcher, the real msrun, stub workers that succeed, fail, stop, and refuse to.

Every case asserts on the status, on what a person reads, and that no process of the job is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindbooth.launch.processes import carriers
from mindbooth.launch.surroundings import free_port

LAUNCH_STUB = Path(__file__).with_name("workers") / "launch_stub.py"
LIMIT_SECONDS = 120


@dataclass
class Run:
    """A launcher at work, or done."""

    process: subprocess.Popen[str]
    output_dir: Path
    out: str = ""
    err: str = ""

    @property
    def plan(self) -> dict[str, object]:
        return dict(json.loads((self.output_dir / "launch" / "plan.json").read_text()))

    def wait_for(self, words: str, times: int = 1) -> None:
        """Read the launcher's lines until `words` came so often."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            times -= words in line
            if times == 0:
                return
        raise AssertionError(f"no {words!r} in:\n{self.out}\n{self.process.communicate()[1]}")

    def end(self) -> int:
        out, self.err = self.process.communicate()
        self.out += out
        return self.process.returncode

    def left(self) -> set[int]:
        return carriers(f"{self.plan['job']}.0")


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs = []

    def start(behaviour: str, *options: str, **environ: str) -> Run:
        """Launch two workers in an empty folder."""
        process = subprocess.Popen(
            [sys.executable, LAUNCH_STUB, behaviour, "--nproc_per_node", "2", *options]
            + ["--", "--output_dir", "out"],
            cwd=tmp_path,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
        watchdog.start()
        runs.append((Run(process=process, output_dir=tmp_path / "out"), watchdog))
        return runs[-1][0]

    yield start
    for run, watchdog in runs:
        watchdog.cancel()
        run.process.kill()
        run.process.communicate()


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Poll, because the processes asked about are not our children."""
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def test_workers_reduce_together_in_the_environment_that_the_plan_shows(start: Start) -> None:
    run = start("trains")
    assert run.end() == 0, run.err
    assert not run.left()
    assert run.err == ""
    for rank in (0, 1):
        assert f"[{rank}] sum [3.0, 3.0, 3.0]\n" in run.out
        (found,) = re.findall(rf"^\[{rank}\] environ (.*)$", run.out, flags=re.MULTILINE)
        seen, plan = json.loads(found), run.plan
        shown = plan["environment"]
        expected = shown["set"] | shown["by_msrun"] | plan["workers"][rank]["environment"]  # type: ignore
        assert {name: seen.get(name) for name in expected} == expected
        assert seen["PATH"].startswith(shown["path_first"] + ":")  # type: ignore
        assert "RANK_TABLE_FILE" not in seen


def test_logs_are_kept_apart_by_attempt(start: Start, tmp_path: Path) -> None:
    for _ in range(2):
        assert start("exits_3").end() == 3
    for attempt in ("attempt-1", "attempt-2"):
        names = {path.name for path in (tmp_path / "out" / "launch" / attempt).iterdir()}
        assert names == {"scheduler.log", "worker_0.log", "worker_1.log"}


@pytest.mark.parametrize(
    ("behaviour", "status", "told"),
    [
        ("raises_before_joining", 1, "RuntimeError: planted before init"),
        ("raises_after_joining", 1, "RuntimeError: planted after init"),
        ("is_killed", 137, "was ended by SIGKILL (status 137): often the out-of-memory killer"),
        ("exits_3", 3, "ended with status 3"),
    ],
)
def test_first_failure_decides_status_and_report(
    start: Start, behaviour: str, status: int, told: str
) -> None:
    run = start(behaviour)
    assert run.end() == status, run.err
    assert not run.left()
    first, log, *_ = run.err.splitlines()
    host = socket.gethostname()
    assert first.startswith(f"mindbooth: rank 1 (host {host}, CPU worker 1) "), run.err
    assert str(run.output_dir / "launch" / "attempt-1" / "worker_1.log") in log
    assert run.err.count(told) == 1
    assert (run.out + run.err).count("Traceback") == behaviour.startswith("raises")


def test_a_worker_that_ends_while_msrun_starts_fails_the_job(start: Start) -> None:
    run = start("exits_3_at_once", "--nproc_per_node", "8")
    assert run.end() in (1, 3)  # msrun may take the status; then 1, and the report says so
    assert "rank " in run.err
    assert not run.left()


def test_an_input_error_is_one_line_and_leaves_nothing(start: Start) -> None:
    run = start("finds_bad_input")
    assert run.end() == 2
    assert run.err == "mindbooth: error: --instance_data_dir nowhere: no such folder.\n"
    assert "mindbooth: error" not in run.out
    assert not run.output_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_request_lets_workers_save(start: Start, number: signal.Signals) -> None:
    run = start("saves_and_stops")
    run.wait_for("ready", times=2)
    run.process.send_signal(number)
    assert run.end() == 75, run.err
    assert run.out.count("saved") == 2
    assert "stopped before training began" in run.err  # there is no checkpoint
    assert not run.left()


def test_ctrl_c_lets_workers_save_and_is_130(start: Start) -> None:
    run = start("saves_and_stops")
    run.wait_for("ready", times=2)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.err
    assert run.out.count("saved") == 2
    assert not run.left()


def test_a_worker_that_does_not_stop_is_killed_after_the_grace(start: Start) -> None:
    run = start("does_not_stop", "--grace_seconds", "1")
    run.wait_for("ready", times=2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 137, run.err
    assert run.out.count("heard") == 2  # told once each
    assert "not done 1 s after the stop request" in run.err
    assert not run.left()


def test_a_second_ctrl_c_kills_at_once(start: Start) -> None:
    run = start("does_not_stop", "--grace_seconds", "600")
    run.wait_for("ready", times=2)
    run.process.send_signal(signal.SIGINT)
    run.wait_for("heard", times=2)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.err
    assert not run.left()


def test_a_stop_before_the_workers_joined_has_nothing_to_save(start: Start) -> None:
    run = start("has_not_joined")
    run.wait_for("ready", times=2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75, run.err
    assert "before training began" in run.err
    assert not run.left()


def test_a_stop_that_comes_when_workers_are_leaving_changes_nothing(start: Start) -> None:
    run = start("takes_long_to_leave")
    run.wait_for("ready", times=2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 0, run.err
    assert not run.left()


def test_a_precompute_that_starts_again_goes_on_from_no_checkpoint(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)  # of a training
    run = start("fails_at_first", "--job", "precompute", "--max_restarts", "1")
    assert run.end() == 0, run.err
    asked = "precompute --output_dir out --device_target CPU"
    assert re.findall(r"asked (.*)", run.out) == [asked] * 2
    assert run.plan["work"] == "precompute"


def test_a_precompute_that_hangs_is_found(start: Start) -> None:
    run = start("hangs_while_encoding", "--job", "precompute", "--hang_seconds", "1")
    assert run.end() == 1
    assert "seems to hang: nothing has moved for" in run.err
    assert "rank 1: encode, encoding 8 of 9" in run.err
    assert not run.left()


def test_a_stop_while_msrun_is_starting_ends_it(start: Start) -> None:
    run = start("has_not_joined")
    run.wait_for("logs in")
    assert wait_until(lambda: len(run.left()) == 1, seconds=5)  # msrun
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.err
    assert not run.left()


def test_killing_the_launcher_leaves_nothing(start: Start) -> None:
    run = start("has_children")
    run.wait_for("ready", times=2)
    # msrun goes; the scheduler, two workers and two children of theirs stay.
    assert wait_until(lambda: len(run.left()) == 5, seconds=10)
    run.process.kill()
    run.process.wait()
    assert wait_until(lambda: not run.left(), seconds=5)


def test_children_of_a_failed_worker_are_swept(start: Start) -> None:
    run = start("has_children")
    run.wait_for("ready", times=2)
    (worker,) = re.findall(r"^\[1\] ready (\d+)$", run.out, flags=re.MULTILINE)
    os.kill(int(worker), signal.SIGKILL)
    assert run.end() == 137, run.err
    assert not run.left()


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = [sys.executable, "-m", "mindbooth.launch", "launch", f"--master_port={port}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mindbooth: error: port {port} of 127.0.0.1 (--master_port) is")
    assert f"taken by python (pid {os.getpid()}, user " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_two_jobs_on_one_host_at_the_same_time_take_two_ports(start: Start, tmp_path: Path) -> None:
    one = start("saves_and_stops", "--log_dir", "logs")
    one.wait_for("ready", times=2)
    other = start("saves_and_stops", "--log_dir", "logs")  # in the same folder, even
    other.wait_for("ready", times=2)
    ports = [re.findall(r"port (\d+)$", run.out, flags=re.MULTILINE) for run in (one, other)]
    for run in (one, other):
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.err
    assert len(ports[0]) == 1
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"attempt-1", "attempt-2"}


def test_a_scheduler_that_dies_ends_the_job_at_once(start: Start) -> None:
    """A port can be taken after the launcher looked: msrun itself would wait ten minutes."""
    run = start("trains")
    run.wait_for("logs in")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(str(run.plan["master_port"]))))
        holder.listen()
        assert run.end() == 1
    assert "mindbooth: msrun's scheduler" in run.err
    assert "scheduler.log, last lines:" in run.err
    assert "MS_SCHED_PORT is occupied" in run.err
    assert not run.left()


def test_an_empty_job_takes_at_most_a_second_longer_than_with_bare_msrun(
    start: Start, tmp_path: Path
) -> None:
    """Side by side, in turns; the best of three counts, as the machine may have other work."""
    bare, launched = [], []
    bin_dir = Path(sys.executable).parent
    for number in range(3):
        began = time.monotonic()
        subprocess.run(
            [bin_dir / "msrun", "--worker_num=2", "--local_worker_num=2", "--join=True"]
            + [f"--master_port={free_port(str(tmp_path))}", f"--log_dir={tmp_path / str(number)}"]
            + ["python", LAUNCH_STUB.with_name("stub.py"), "is_empty"],
            env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        bare.append(time.monotonic() - began)
        began = time.monotonic()
        assert start("is_empty").end() == 0
        launched.append(time.monotonic() - began)
    assert min(launched) < min(bare) + 1


def test_a_long_run_costs_the_launcher_next_to_nothing(start: Start) -> None:
    run = start("is_quiet", STUB_SECONDS="6")
    run.wait_for("logs in")
    assert wait_until(lambda: len(run.left()) == 3, seconds=20)
    before = _cpu_seconds(run.process.pid)
    assert wait_until(lambda: len(run.left()) < 3, seconds=20)
    used = _cpu_seconds(run.process.pid) - before
    assert run.end() == 0, run.err
    assert used < 0.3


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
