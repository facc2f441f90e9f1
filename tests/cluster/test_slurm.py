"""examples/slurm on a real Slurm of two hosts: train, stop, go on, fail, and leave nothing.

The scripts are submitted as they are, with mindbooth on PATH.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
import yaml
from hosts import LIMIT_SECONDS, wait
from jobs import Flags
from slurm import Slurm

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN = EXAMPLES / "slurm" / "train.sbatch"
ARRAY = EXAMPLES / "slurm" / "array.sbatch"
PRECOMPUTE = EXAMPLES / "slurm" / "precompute.sbatch"
LAUNCHER = ("--device_target", "CPU", "--nproc_per_node", "1")
UPDATES = 40
ENDLESS = 100_000
EARLY = ("--batch", "--signal=USR1")  # what --signal=B:USR1@300 sends before the time is up


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A user's folder on the cluster, and the flags that all runs in it share."""

    slurm: Slurm
    daemons: frozenset[int]
    folder: Path
    common: Flags

    def train(self, output: str, **options: object) -> str:
        """Submit train.sbatch for a worker on each host; return the job's id."""
        flags = [*self.common, *jobs.flags(output_dir=output, **options)]
        return self.submit(TRAIN, arguments=[*LAUNCHER, "--", *flags])

    def submit(self, script: Path, *options: str, arguments: Sequence[str]) -> str:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return self.slurm.submit(
            script, *options, cwd=self.folder, arguments=arguments, PATH=path
        )  # fmt: skip

    def until_updates(self, job: str, output: str, count: int) -> None:
        def there() -> bool:
            assert self.slurm.state(job) in ("PENDING", "RUNNING"), self.slurm.told(job)
            return jobs.updates(self.folder / output) >= count

        wait(there, LIMIT_SECONDS, lambda: self.slurm.told(job))

    def left(self) -> set[int]:
        """What is alive on any host, but for Slurm's daemons."""
        return {pid for host in self.slurm.hosts for pid in host.processes()} - self.daemons

    def worker(self, rank: int) -> int:
        """The pid of a worker; its children, which share its environment, came later."""
        return min(
            pid
            for host in self.slurm.hosts
            for pid, environ in host.processes().items()
            if (environ.get("MS_ROLE"), environ.get("RANK_ID")) == ("MS_WORKER", str(rank))
        )

    def succeeded(self, job: str) -> None:
        assert self.slurm.wait(job, 2 * LIMIT_SECONDS) == "COMPLETED", self.slurm.told(job)


@pytest.fixture(scope="module")
def batch(
    slurm: Slurm, tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Batch:
    folder = tmp_path_factory.mktemp("batch")
    common = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        train_batch_size=1,
        allreduce_dtype="fp32",
        latent_cache_dir=folder / "cache",
        report_to="none",
    )
    daemons = frozenset(pid for host in slurm.hosts for pid in host.processes())
    return Batch(slurm=slurm, daemons=daemons, folder=folder, common=common)


@pytest.fixture(scope="module")
def undisturbed(batch: Batch) -> np.ndarray:
    """The adapter of a job that nobody disturbed, in batch.folder/undisturbed."""
    job = batch.train("undisturbed", max_train_steps=UPDATES)
    batch.succeeded(job)
    return jobs.adapter(batch.folder / "undisturbed")


def test_two_hosts_train_what_one_process_trains(batch: Batch, undisturbed: np.ndarray) -> None:
    one = jobs.flags(output_dir="one", max_train_steps=UPDATES, train_batch_size=2)
    start = jobs.flags(output_dir="start", max_train_steps=1, learning_rate=0)
    for ended in jobs.several([[*batch.common, *flags] for flags in (one, start)], batch.folder):
        assert ended.status == 0, ended.err
    alone, untrained = (jobs.adapter(batch.folder / output) for output in ("one", "start"))
    assert jobs.distance(undisturbed, alone, untrained) < 1e-3


def test_each_host_has_a_worker(batch: Batch, undisturbed: np.ndarray) -> None:
    logs = batch.folder / "undisturbed" / "launch" / "attempt-1"
    assert {path.name for path in logs.glob("worker_*.log")} == {"worker_0.log", "worker_1.log"}
    assert "1 a device x 2 devices" in (logs / "worker_0.log").read_text()


def test_scancel_leaves_nothing_and_the_job_does_not_come_back(batch: Batch) -> None:
    job = batch.train("cancelled", max_train_steps=ENDLESS)
    batch.until_updates(job, "cancelled", 2)
    assert len(batch.left()) > 8  # a script, and on each host srun's daemon, launcher and worker
    batch.slurm.cancel(job)
    wait(lambda: not batch.left(), 15, lambda: batch.slurm.told(job))
    assert batch.slurm.wait(job) == "CANCELLED", batch.slurm.told(job)
    assert batch.slurm.fields(job)["Restarts"] == "0"


@pytest.mark.slow  # Slurm lets a requeued job wait for two minutes
def test_the_early_signal_saves_requeues_and_finishes_as_if_undisturbed(
    batch: Batch, undisturbed: np.ndarray
) -> None:
    job = batch.train("requeued", max_train_steps=UPDATES)
    batch.until_updates(job, "requeued", 3)
    batch.slurm.cancel(job, *EARLY)
    batch.succeeded(job)
    output = batch.folder / "requeued"
    assert batch.slurm.fields(job)["Restarts"] == "1"
    assert 3 <= min(int(path.name[11:]) for path in output.glob("checkpoint-*")) < UPDATES
    assert [line["step"] for line in jobs.metrics(output)] == list(range(1, UPDATES + 1))
    assert np.array_equal(jobs.adapter(output), undisturbed)


def test_a_killed_worker_fails_the_job_within_15_s(batch: Batch) -> None:
    job = batch.train("killed", max_train_steps=ENDLESS)
    batch.until_updates(job, "killed", 2)
    os.kill(batch.worker(rank=1), signal.SIGKILL)
    assert batch.slurm.wait(job, 15) == "FAILED", batch.slurm.told(job)
    assert batch.slurm.exit_status(job) == 137
    told = batch.slurm.output(job)
    assert re.search(r"rank 1\b.*\bn2\b.*SIGKILL", told), told
    assert not batch.left()


def test_a_mistake_in_the_flags_fails_the_job_with_2_and_no_requeue(batch: Batch) -> None:
    job = batch.train("mistaken", learning_rat=1)
    assert batch.slurm.wait(job) == "FAILED", batch.slurm.told(job)
    assert batch.slurm.exit_status(job) == 2
    assert "learning_rat" in batch.slurm.output(job)
    assert batch.slurm.fields(job)["Restarts"] == "0"


def test_a_training_that_depends_on_a_precompute_has_nothing_to_encode(batch: Batch) -> None:
    own = jobs.flags(output_dir="prepared", latent_cache_dir="prepared-cache", max_train_steps=2)
    arguments = [*LAUNCHER, "--", *batch.common, *own]
    first = batch.submit(PRECOMPUTE, arguments=arguments)
    then = batch.submit(TRAIN, f"--dependency=afterok:{first}", arguments=arguments)
    batch.succeeded(then)
    assert re.search(r"Encoded (\d+) of \1 entries", batch.slurm.output(first))
    assert "Nothing to encode" in batch.slurm.output(then)
    assert jobs.learned(batch.folder / "prepared") > 0


@pytest.fixture(scope="module")
def array(batch: Batch, mini_sdxl: Path) -> str:
    """The id of an array of two jobs, which trained the same pictures as a cat and a dog."""
    for name in ("cat", "dog"):
        (batch.folder / "subjects").mkdir(exist_ok=True)
        (batch.folder / "subjects" / name).symlink_to(mini_sdxl / "instance")
    flags = zip(batch.common[::2], batch.common[1::2], strict=True)
    config = {name.removeprefix("--"): value for name, value in flags}
    config |= {"max_train_steps": "2", "latent_cache_dir": str(batch.folder / "cache")}
    (batch.folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    job = batch.submit(ARRAY, "--array=0-1", arguments=["tiny.yaml", "subjects"])
    for task in ("0", "1"):
        batch.succeeded(f"{job}_{task}")
    return job


def test_an_array_trains_an_adapter_for_each_folder(batch: Batch, array: str) -> None:
    for name in ("cat", "dog"):
        assert jobs.learned(batch.folder / "lora" / name) > 0


def test_the_jobs_of_an_array_run_on_both_hosts_at_the_same_time(batch: Batch, array: str) -> None:
    first, second = (batch.slurm.fields(f"{array}_{task}") for task in ("0", "1"))
    assert {first["NodeList"], second["NodeList"]} == {"n1", "n2"}
    assert max(first["StartTime"], second["StartTime"]) < min(first["EndTime"], second["EndTime"])
