"""Trainings for the tests: real commands, started, followed and ended, and what they leave behind.

They train a tiny random pipeline, in PyNative, which needs no compiling, unless a test says
otherwise.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mindbooth.launch import processes

MINDBOOTH = (sys.executable, "-m", "mindbooth.launch")
SEVERAL = Path(__file__).parent / "integration" / "workers" / "several.py"
LAUNCH_SEVERAL = Path(__file__).parent / "integration" / "workers" / "launch_several.py"
FAULTY = Path(__file__).parent / "integration" / "workers" / "faulty.py"
LAUNCH_FAULTY = Path(__file__).parent / "integration" / "workers" / "launch_faulty.py"
LORA = "pytorch_lora_weights.safetensors"
LIMIT_SECONDS = 600  # for a dozen runs on a busy machine
Flags = list[str]


def flags(**options: object) -> Flags:
    """Options as a command line: True is a flag without a value, False and None are left out."""
    words = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def training(model: Path, pictures: Path, **options: object) -> Flags:
    """The flags of a small run that goes far in few updates."""
    usual: dict[str, object] = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": pictures,
        "instance_prompt": "a photo of sks cat",
        "resolution": 32,
        "learning_rate": 1e-3,
        "seed": 7,
        "mode": "pynative",
    }
    return flags(**usual | options)


def launch(workers: int, *launcher_options: str) -> Flags:
    """`mindbooth launch` up to the training flags."""
    count = ["--device_target", "CPU", "--nproc_per_node", str(workers)]
    return [*MINDBOOTH, "launch", *count, *launcher_options, "--"]


@dataclass
class Job:
    """A command at work, or done. Its output goes to files: nobody has to read it meanwhile."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    @property
    def told(self) -> str:
        return f"{self.out}\n{self.err}"[-6000:]

    def until(self, true: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Return when it is true; what is looked at are files and processes of others."""
        limit = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.told}"
            assert time.monotonic() < limit, self.told
            time.sleep(0.02)

    def until_updates(self, output: Path, count: int) -> None:
        self.until(lambda: updates(output) >= count)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = LIMIT_SECONDS) -> int:
        return self.process.wait(seconds)


@contextmanager
def started(command: Sequence[str | Path], cwd: Path, **environ: str) -> Iterator[Job]:
    """Run a command in `cwd`, which is made; it is killed if it is not done at the end."""
    cwd.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="terminal-", dir=cwd.parent))
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=_heed_ctrl_c,
        )
    try:
        yield Job(process=process, folder=folder)
    finally:
        process.kill()  # what a launcher started, its keeper ends
        process.wait()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell inherit deafness


def run(command: Sequence[str | Path], cwd: Path, **environ: str) -> Job:
    """Run a command to its end."""
    with started(command, cwd, **environ) as job:
        job.end()
    return job


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one of several trainings in one process ended, and all that it wrote to the terminal."""

    status: int
    out: str
    err: str


def several(runs: Sequence[Flags], cwd: Path, **environ: str) -> list[Ended]:
    """`mindbooth train` with each of the command lines, one after the other in one process."""
    cwd.mkdir(parents=True, exist_ok=True)
    (cwd / "runs.json").write_text(json.dumps(runs))
    job = run([sys.executable, SEVERAL, "runs.json"], cwd, **environ)
    assert job.process.returncode == 0, job.told
    return [Ended(**ended) for ended in json.loads((cwd / "ended.json").read_text())]


def several_launched(
    workers: int, common: Flags, runs: Sequence[Flags], cwd: Path, *,
    program: Path = LAUNCH_SEVERAL, **environ: str,
) -> Job:  # fmt: skip
    """`mindbooth launch` of workers that meet once and then do several runs, each with the common
    flags and its own. program: LAUNCH_SEVERAL, or LAUNCH_FAULTY."""
    cwd.mkdir(parents=True, exist_ok=True)
    (cwd / "runs.json").write_text(json.dumps(runs))
    options = launch(workers)[len(MINDBOOTH) + 1 :]
    return run([sys.executable, program, "runs.json", *options, *common], cwd, **environ)


def updates(output: Path) -> int:
    """How many updates a run has done so far."""
    path = output / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def collectives(output: Path) -> set[float]:
    """How many each update took, but for those that overflowed, which are one each."""
    return {line["collectives"] - line["skipped"] for line in metrics(output)}


def adapter(folder: Path) -> np.ndarray:
    """All numbers of an adapter, in the order of the tensors' names."""
    tensors = load_file(folder / LORA)
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def learned(folder: Path) -> float:
    """The greatest number of an adapter's B matrices, which start at 0."""
    tensors = load_file(folder / LORA)
    return max(float(np.abs(t).max()) for name, t in tensors.items() if name.endswith(".up.weight"))


def distance(one: np.ndarray, other: np.ndarray, start: np.ndarray) -> float:
    """L2 distance of two trained adapters, relative to how far the other one has moved."""
    moved = np.linalg.norm(other - start)
    assert moved > 0.1, "nothing was learned: such adapters always agree"
    return float(np.linalg.norm(one - other) / moved)


def workers(output: Path) -> dict[int, int]:
    """The pids of a launched job's workers that are alive, by rank."""
    found = {}
    for pid in left(output):
        who = processes.member(processes.environ(pid), token(output))
        if who is not None and who.rank is not None:
            found[who.rank] = pid
    return found


def left(output: Path) -> set[int]:
    """All processes of a launched job."""
    return processes.carriers(token(output))


def token(output: Path) -> str:
    """What tells a launched job's processes, on its first host, from all others."""
    plan = output / "launch" / "plan.json"
    return f"{json.loads(plan.read_text())['job']}.0"


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, with the time of its last change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
