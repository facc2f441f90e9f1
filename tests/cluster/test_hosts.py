"""One job on two hosts, and what can go wrong: the true cause on both, and nothing left on either.

A launcher on each, as a person starts them by hand. Only the job runs on these hosts, so that
"nothing is left" means: no process at all.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import psutil
import pytest
from hosts import Host, Hosts, Running, wait

from mindbooth.launch.plan import port_for

LAUNCH_STUB = Path(__file__).with_name("workers") / "launch_stub.py"
CHECKPOINT = {jobs.LORA, "state.json", "state.safetensors"}
N1, N2 = 0, 1


@dataclass
class Job:
    """One launcher a host, at work or done; or one alone."""

    hosts: Hosts
    launchers: tuple[Running, ...]
    output: Path

    @property
    def plan(self) -> dict[str, object]:
        return dict(json.loads((self.output / "launch" / "plan.json").read_text()))

    def until(self, true: Callable[[], bool]) -> None:
        """Return when it is true, which must be while all launchers run."""
        for launcher in self.launchers:
            launcher.until(true)

    def until_told(self, words: str, times: int) -> None:
        """Return when all launchers together have shown it so often."""
        self.until(lambda: sum(launcher.out.count(words) for launcher in self.launchers) >= times)

    def worker(self, rank: int) -> int | None:
        """The pid of a worker, once there is one; its children have its environment too."""
        found = {
            pid
            for host in self.hosts
            for pid, environ in host.processes().items()
            if (environ.get("MS_ROLE"), environ.get("RANK_ID")) == ("MS_WORKER", str(rank))
        }
        # A child may be gone since it was found.
        parents = {pid: parent for pid in found if (parent := _parent(pid)) is not None}
        return next((pid for pid, parent in parents.items() if parent not in found), None)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Signal a worker."""
        pid = self.worker(rank)
        assert pid is not None, self.shown()
        os.kill(pid, number)

    def tell_everyone(self, number: signal.Signals) -> None:
        """Signal every process of the job, as schedulers do."""
        for host in self.hosts:
            for pid in host.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def log(self, rank: int, attempt: int = 1) -> str:
        path = self.output / "launch" / f"attempt-{attempt}" / f"worker_{rank}.log"
        return path.read_text(errors="replace")

    def ends(self, within: float, *, swept_within: float = 1) -> list[int]:
        """The launchers' statuses, if all end in time, and soon nothing is left on any host."""
        wait(lambda: all(one.status is not None for one in self.launchers), within, self.shown)
        wait(lambda: not self.left(), swept_within, self.shown)
        return [launcher.end() for launcher in self.launchers]

    def left(self) -> dict[str, list[str]]:
        return {
            host.name: [_command(pid) for pid in found]
            for host in self.hosts
            if (found := host.processes())
        }

    def shown(self) -> str:
        pairs = zip(self.hosts, self.launchers, strict=False)
        told = [f"--- {host.name}:\n{launcher.told}" for host, launcher in pairs]
        return "\n".join([f"left: {self.left()}", *told])


Start = Callable[..., Job]


@pytest.fixture
def start(hosts: Hosts, tmp_path: Path) -> Iterator[Start]:
    """Starts a launcher on each host, or on those of `only`; each host is empty afterwards."""

    def start(
        command: Sequence[str | Path],
        *options: str,
        flags: Sequence[str] = (),
        output: Path = tmp_path / "out",
        only: Sequence[int] = (N1, N2),
        **environ: str,
    ) -> Job:
        common = ["--scheduler", "none", "--nnodes", "2", "--master_addr", hosts[N1].address]
        launchers = [
            hosts[rank].popen(
                [*command, *common, "--node_rank", str(rank), "--device_target", "CPU", *options]
                + ["--", "--output_dir", str(output), *flags],
                cwd=tmp_path / "cwd",
                **environ,
            )
            for rank in only
        ]
        return Job(hosts=hosts, launchers=tuple(launchers), output=output)

    yield start
    for host in hosts:
        host.join()
        for pid in host.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stub(behaviour: str) -> list[str | Path]:
    return [sys.executable, LAUNCH_STUB, behaviour]


TRAINING = [*jobs.MINDBOOTH, "launch"]


def each(workers: int) -> tuple[str, str]:
    return ("--nproc_per_node", str(workers))


@pytest.fixture
def training(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    """The flags of a small training."""

    def flags(**options: object) -> list[str]:
        usual = {
            "train_batch_size": 1,
            "allreduce_dtype": "fp32",
            "report_to": "none",
            "latent_cache_dir": tmp_path_factory.getbasetemp() / "cache",
        }
        return jobs.training(tiny_pipeline, mini_sdxl / "instance", **usual | options)

    return flags


# A worker fails.


def test_a_killed_worker_is_named_on_both_hosts(start: Start) -> None:
    job = start(stub("reduces"), *each(2))
    job.until_told("last words", times=4)
    assert "[3] sum 10.0\n" in job.launchers[N2].out
    job.launchers[N2].until_told("[3] reduced", times=20)
    job.send(3, signal.SIGKILL)
    assert job.ends(within=15) == [137, 137], job.shown()
    for launcher in job.launchers:
        first, log, *words = launcher.err.splitlines()
        assert first.startswith("mindbooth: rank 3 (host n2, CPU worker 1) was ended by SIGKILL")
        assert "attempt-1/worker_3.log, last lines:" in log
        assert words == ["  | reduced"] * 20


@pytest.mark.parametrize("behaviour", ["raises_before_joining", "raises_after_joining"])
def test_an_exception_is_shown_once_and_the_followers_are_not_blamed(
    start: Start, behaviour: str
) -> None:
    job = start(stub(behaviour), *each(2))
    assert job.ends(within=120) == [1, 1], job.shown()
    ended = time.time()
    for launcher in job.launchers:
        first, *_ = launcher.err.splitlines()
        assert first.startswith("mindbooth: rank 3 (host n2, CPU worker 1) ended with status 1")
        assert (launcher.out + launcher.err).count("Traceback") == 1
        (planted,) = re.findall(r"RuntimeError: planted at (\S+) s", launcher.err)
        assert ended - float(planted) < 15


@pytest.mark.parametrize("place", [N1, N2])
def test_a_worker_that_does_not_move_is_found_and_every_rank_tells_its_stacks(
    start: Start, training: Callable[..., list[str]], place: int
) -> None:
    flags = training(max_train_steps=100000)
    job = start(TRAINING, *each(1), "--hang_seconds", "5", flags=flags)
    job.until(lambda: jobs.updates(job.output) >= 2)
    job.send(place, signal.SIGSTOP)
    assert job.ends(within=40) == [1, 1], job.shown()
    for launcher in job.launchers:
        first, *_ = launcher.err.splitlines()
        assert f"rank {place} (host n{place + 1}, CPU worker 0) seems to hang: " in first
        assert re.search(rf"nothing has moved for \d+ s \(rank {place}: stopped \(SIGSTOP\)", first)
    for rank in (0, 1):
        assert "most recent call first" in job.log(rank)


def test_a_worker_may_leave_long_after_those_of_the_first_host(start: Start) -> None:
    job = start(stub("leaves_late"), *each(1))
    job.until_told("late", times=1)
    assert job.ends(within=20) == [0, 0], job.shown()
    assert "ERROR" not in job.log(1)  # which tells, every few seconds, that the scheduler is gone


# A stop is asked for.


@pytest.mark.parametrize(("number", "place"), [(signal.SIGTERM, N2), (signal.SIGUSR1, N1)])
def test_a_stop_request_to_one_launcher_saves_and_stops_on_both(
    start: Start, training: Callable[..., list[str]], number: signal.Signals, place: int
) -> None:
    job = start(TRAINING, *each(1), flags=training(max_train_steps=100000))
    job.until(lambda: jobs.updates(job.output) >= 2)
    job.launchers[place].send(number)
    assert job.ends(within=30) == [75, 75], job.shown()
    (saved,) = job.output.glob("checkpoint-*")
    assert saved.name == f"checkpoint-{jobs.updates(job.output)}"
    assert {path.name for path in saved.iterdir()} >= CHECKPOINT
    for launcher in job.launchers:
        assert "stopped on request, everything saved" in launcher.err


def test_one_ctrl_c_that_reaches_every_launcher_is_no_second_one(start: Start) -> None:
    job = start(stub("waits"), *each(2))
    job.until_told("ready", times=4)
    for launcher in job.launchers:
        launcher.send(signal.SIGINT)
    assert job.ends(within=15) == [130, 130], job.shown()
    assert sum(launcher.out.count("saved") for launcher in job.launchers) == 4


@pytest.mark.parametrize("place", [N1, N2])
def test_ctrl_c_at_one_launcher_is_130_on_both(start: Start, place: int) -> None:
    job = start(stub("waits"), *each(2))
    job.until_told("ready", times=4)
    job.launchers[place].send(signal.SIGINT)
    assert job.ends(within=15) == [130, 130], job.shown()
    assert sum(launcher.out.count("saved") for launcher in job.launchers) == 4


def test_a_scheduler_that_tells_every_process_to_stop_lets_workers_save(start: Start) -> None:
    job = start(stub("waits"), *each(2))
    job.until_told("ready", times=4)
    job.tell_everyone(signal.SIGTERM)
    assert job.ends(within=15) == [75, 75], job.shown()
    assert sum(launcher.out.count("saved") for launcher in job.launchers) == 4


def test_every_process_told_to_stop_before_training_begins_is_a_stop_too(
    start: Start, training: Callable[..., list[str]]
) -> None:
    job = start(TRAINING, *each(1), flags=training(max_train_steps=100000))
    job.until(lambda: all(_listens(job.worker(rank)) for rank in (0, 1)))
    job.tell_everyone(signal.SIGTERM)
    assert job.ends(within=15) == [75, 75], job.shown()
    assert not list(job.output.glob("checkpoint-*"))


def test_a_stop_while_one_host_is_awaited_ends_both(start: Start) -> None:
    job = start(stub("waits"), *each(1), only=[N2])
    job.until_told("waiting for host 0", times=1)
    job.launchers[0].send(signal.SIGTERM)
    assert job.ends(within=5) == [75], job.shown()


# What starts and watches the workers is gone.


@pytest.mark.parametrize("place", [N1, N2])
def test_without_msrun_nothing_goes_on(start: Start, place: int) -> None:
    job = start(stub("never_listens"), *each(2))
    # msrun goes by itself once the workers are started.
    job.until(lambda: _msrun(job.hosts[place]) is not None)
    os.kill(_msrun(job.hosts[place]) or 0, signal.SIGKILL)
    assert job.ends(within=15) == [137, 137], job.shown()
    for launcher in job.launchers:
        assert f"mindbooth: msrun (host n{place + 1}) was ended by SIGKILL" in launcher.err


@pytest.mark.parametrize(("place", "other"), [(N1, N2), (N2, N1)])
def test_without_one_launcher_nothing_goes_on(start: Start, place: int, other: int) -> None:
    job = start(stub("waits"), *each(2))
    job.until_told("ready", times=4)
    job.launchers[place].send(signal.SIGKILL)
    statuses = job.ends(within=10, swept_within=5)
    assert (statuses[place], statuses[other]) == (137, 1), job.shown()
    assert f"mindbooth: host n{place + 1} " in job.launchers[other].err


def test_a_host_that_is_cut_off_is_named_on_both_sides(start: Start) -> None:
    job = start(stub("reduces"), *each(2))
    job.until_told("last words", times=4)
    job.hosts[N2].cut()
    assert job.ends(within=30) == [1, 1], job.shown()
    assert job.launchers[N1].err.startswith("mindbooth: host n2 ")
    assert job.launchers[N2].err.startswith("mindbooth: host n1 ")


# Hosts and ports.


def test_hosts_that_were_told_different_things_do_not_start(
    start: Start, training: Callable[..., list[str]]
) -> None:
    one = start(TRAINING, *each(1), flags=training(seed=1), only=[N1])
    other = start(TRAINING, *each(1), flags=training(seed=2), only=[N2])
    statuses = [job.launchers[0].end(10) for job in (one, other)]
    assert statuses == [2, 2], one.shown() + other.shown()
    assert one.launchers[0].err == other.launchers[0].err
    assert "host n2 was given other training flags than n1" in one.launchers[0].err
    assert not one.output.exists()


def test_a_log_that_only_its_host_can_read_is_told_on_both(
    start: Start, hosts: Hosts, tmp_path: Path
) -> None:
    log_dir = tmp_path / "local" / "logs"
    log_dir.parent.mkdir()
    hosts[N2].run(["mount", "-t", "tmpfs", "tmpfs", log_dir.parent])
    job = start(stub("raises_before_joining"), *each(1), "--log_dir", str(log_dir))
    assert job.ends(within=60) == [1, 1], job.shown()
    assert "host n2 does not see" in job.launchers[N1].out
    for launcher in job.launchers:
        assert launcher.err.count("RuntimeError: planted") == 1
    names = [host.run(["ls", log_dir / "attempt-1"]).split() for host in job.hosts]
    assert names == [["scheduler.log", "worker_0.log"], ["worker_1.log"]]


def test_a_host_that_never_comes_is_named_with_what_it_should_have_run(start: Start) -> None:
    job = start(TRAINING, *each(1), "--rendezvous_seconds", "5", only=[N1])
    assert job.ends(within=8) == [1], job.shown()
    (line,) = job.launchers[0].err.splitlines()
    assert "node rank 1 has not come within 5 s (--rendezvous_seconds)" in line
    assert "--node_rank 1" in line
    assert f"--master_addr {job.hosts[N1].address}" in line
    assert not job.output.exists()


def test_host_0_that_never_comes_is_named(start: Start) -> None:
    job = start(TRAINING, *each(1), "--rendezvous_seconds", "5", only=[N2])
    assert job.ends(within=10) == [1], job.shown()
    (line,) = job.launchers[0].err.splitlines()
    assert f"host 0 did not answer at {job.hosts[N1].address}" in line
    assert not job.output.exists()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("named", [True, False])
def test_a_taken_port_is_told_at_once_with_who_holds_it(
    start: Start, hosts: Hosts, tmp_path: Path, named: bool, offset: int
) -> None:
    port = 23456 if named else port_for(str(tmp_path / "out"))
    serve = [sys.executable, "-u", "-m", "http.server", str(port + offset)]
    hosts[N1].popen(serve, cwd=tmp_path).until_told("Serving HTTP")
    option = ["--master_port", str(port)] if named else []
    job = start(TRAINING, *each(1), *option, only=[N1])
    assert job.launchers[0].end(5) == 2, job.shown()
    (line,) = job.launchers[0].err.splitlines()
    assert f"port {port + offset} of {hosts[N1].address}" in line
    assert re.search(r"is taken by python\S* \(pid \d+, user root\)", line)
    assert not job.output.exists()


def test_two_jobs_on_the_same_hosts_do_not_meet(start: Start, tmp_path: Path) -> None:
    one = start(stub("reduces"), *each(1), output=tmp_path / "one")
    other = start(stub("reduces"), *each(1), output=tmp_path / "other")
    for job in (one, other):
        job.until_told("sum 3.0", times=2)
    one.launchers[N1].send(signal.SIGTERM)
    assert [launcher.end(15) for launcher in one.launchers] == [75, 75], one.shown()
    told = other.launchers[N1].out.count("reduced")
    other.until(lambda: other.launchers[N1].out.count("reduced") > told + 10)
    other.launchers[N2].send(signal.SIGTERM)
    assert other.ends(within=15) == [75, 75], other.shown()


def test_a_mistake_in_the_input_is_one_line_on_both_and_leaves_nothing(
    start: Start, training: Callable[..., list[str]], tmp_path: Path
) -> None:
    job = start(TRAINING, *each(1), flags=training(instance_data_dir=tmp_path / "nowhere"))
    assert job.ends(within=90) == [2, 2], job.shown()
    for launcher in job.launchers:
        (line,) = launcher.err.splitlines()
        assert line.startswith("mindbooth: error: ")
        assert "nowhere" in line
    assert not job.output.exists()


# A second attempt.


def test_a_restarted_job_ends_as_the_undisturbed_one(
    start: Start, training: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = training(max_train_steps=8, checkpointing_steps=4, latent_cache_dir=tmp_path / "cache")
    whole = start(TRAINING, *each(1), flags=flags, output=tmp_path / "whole")
    assert whole.ends(within=120) == [0, 0], whole.shown()
    killed = start(
        TRAINING, *each(1), "--max_restarts", "1", flags=flags, output=tmp_path / "killed"
    )
    killed.until(lambda: jobs.updates(killed.output) >= 5)
    killed.send(1, signal.SIGKILL)
    assert killed.ends(within=120) == [0, 0], killed.shown()
    assert "Updates 5 to 8" in killed.log(0, attempt=2)
    for launcher in killed.launchers:
        assert "mindbooth: starting again (restart 1 of 1)" in launcher.err
    assert jobs.learned(whole.output) > 0
    assert np.array_equal(jobs.adapter(whole.output), jobs.adapter(killed.output))


def test_a_job_is_not_restarted_more_often_than_asked(start: Start) -> None:
    job = start(stub("raises_before_joining"), *each(1), "--max_restarts", "1")
    assert job.ends(within=120) == [1, 1], job.shown()
    assert {path.name for path in (job.output / "launch").glob("attempt-*")} == {
        "attempt-1",
        "attempt-2",
    }


def _parent(pid: int) -> int | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).ppid()
    return None


def _listens(pid: int | None) -> bool:
    """Whether a process has a handler for TERM."""
    if pid is None:
        return False
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "gone"


def _msrun(host: Host) -> int | None:
    return next((pid for pid in host.processes() if "msrun --" in _command(pid)), None)


# The cache.


@pytest.fixture
def disks(hosts: Hosts, tmp_path: Path) -> Path:
    """A folder that is another disk on each host."""
    folder = tmp_path / "disk"
    folder.mkdir()
    for host in hosts:
        host.run(["mount", "-t", "tmpfs", "tmpfs", folder])
    return folder


def test_hosts_without_a_common_cache_say_so_and_encode_each_for_itself(
    start: Start, training: Callable[..., list[str]], disks: Path
) -> None:
    job = start(TRAINING, *each(2), flags=training(latent_cache_dir=disks, max_train_steps=2))
    assert job.ends(within=180) == [0, 0], job.shown()
    for place, ranks in ((N1, "0, 1"), (N2, "2, 3")):
        first = job.log(2 * place)
        assert f"Not all ranks see one cache folder {disks}: ranks {ranks}, on n" in first
        assert "Encoded 6 of 6 entries" in first
    assert jobs.updates(job.output) == 2


def test_a_cache_that_must_be_shared_and_is_not_is_refused(
    start: Start, training: Callable[..., list[str]], disks: Path
) -> None:
    flags = training(latent_cache_dir=disks, max_train_steps=2, cache_scope="shared")
    job = start(TRAINING, *each(1), flags=flags)
    assert job.ends(within=120) == [2, 2], job.shown()
    for launcher in job.launchers:
        assert "--cache_scope" in launcher.err, job.shown()
        assert "n1" in launcher.err
        assert "n2" in launcher.err
