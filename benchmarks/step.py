"""Updates a second against what a user would run instead, and against the bare UNet.

`step.py` runs, in turns and in whole processes: mindbooth as users start it, the step made of
mindone's own parts (`peer.py step`), and the UNet's forward and backward alone (`peer.py bare`, for
its memory; for its time in one process with the updates, `peer.py between`, because two processes
that do the same differ by more than is looked for); on the mini SDXL and on the random model of
models.py, batch 1 a worker, fp32, in one process and under `mindbooth launch` with 2 and 4 workers,
which starts both sides with the same msrun and the same threads. The first updates of a process are
left out; its figure is the median of the others.
"""

import argparse
import functools
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import models
from figures import Figure, as_text, of, ratio, status, write

HERE = Path(__file__).resolve().parent
MINI = HERE.parent / "examples" / "mini-sdxl"
LEFT_OUT = 5  # updates at the start of a process
ACCUMULATED = 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained. captions: each picture has one of its own."""

    model: Path
    resolution: int
    captions: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """What both sides run. bar: for updates/s of mindbooth over those of the peer."""

    subject: str
    workers: int
    mode: str
    bar: float | None = None

    @property
    def name(self) -> str:
        plural = "worker" if self.workers == 1 else "workers"
        return f"{self.subject}, {self.workers} {plural}, {self.mode}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of rank 0. seconds: an update's; memory: most that was resident during updates, in GB.
    collectives: an update's, those that overflowed counted apart."""

    seconds: float
    memory: float
    collectives: tuple[int, ...] = ()


CASES = (
    Case(subject="mini SDXL", workers=1, mode="graph", bar=1.05),
    Case(subject="50 M", workers=1, mode="graph", bar=1.4),
    Case(subject="50 M, a caption an image", workers=1, mode="graph", bar=1.6),
    Case(subject="mini SDXL", workers=2, mode="graph", bar=1.5),
    Case(subject="mini SDXL", workers=4, mode="graph", bar=2.0),
    Case(subject="50 M", workers=2, mode="graph", bar=1.5),
    Case(subject="50 M", workers=4, mode="graph", bar=2.0),
    Case(subject="50 M, a caption an image", workers=2, mode="graph", bar=1.5),
    Case(subject="50 M, a caption an image", workers=4, mode="graph", bar=2.0),
    Case(subject="50 M", workers=1, mode="pynative"),
    Case(subject="50 M", workers=2, mode="pynative"),
    Case(subject="50 M", workers=4, mode="pynative"),
)
MOST_OVER_BARE, MOST_MEMORY, MOST_ACCUMULATED, MOST_COLLECTIVES = 1.10, 1.15, 1.05, 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="one repeat of fewer updates")
    parser.add_argument("--only", help="the cases whose names contain this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.updates = 1, 15
    if options.only and not any(
        options.only in name for name in (*(case.name for case in CASES), "floors")
    ):
        parser.error(f"no case is called {options.only}")
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.updates)
        for case in CASES:
            if not options.only or options.only in case.name:
                found += bench.compared(case, options.repeats)
                write(options.json, found)
        if not options.only or options.only in "floors":
            found += bench.floors(options.repeats)
    print(as_text(found), end="")
    write(options.json, found)
    return status(found)


class Bench:
    """The processes that are measured, and where their files are."""

    def __init__(self, folder: Path, updates: int) -> None:
        self.folder = folder
        self.updates = updates
        self.runs = 0

    def compared(self, case: Case, repeats: int) -> list[Figure]:
        """mindbooth against the peer."""
        runs, peer = [], []
        for _ in range(repeats):
            runs.append(self.mindbooth(case))
            peer.append(self.peer("step", case).seconds)
        ours = [run.seconds for run in runs]
        told(case.name, mindbooth=ours, peer=peer)
        name = f"updates/s against mindone's step: {case.name}"
        found = [ratio(name, peer, ours, bar=case.bar, better="higher")]
        if case.workers > 1:
            each = [count for run in runs for count in run.collectives]
            name = f"collectives an update: {case.name}"
            found.append(of(name, each, "", bar=MOST_COLLECTIVES, better="lower"))
        return found

    def floors(self, repeats: int) -> list[Figure]:
        """The larger model on one worker: against its bare forward and backward."""
        case = Case(subject="50 M", workers=1, mode="graph")
        one, many, memory = [], [], []
        for _ in range(repeats):
            one.append(self.between(case, accumulation=1))
            many.append(self.between(case, accumulation=ACCUMULATED))
            memory.append((self.mindbooth(case).memory, self.peer("bare", case).memory))
        (updates, floor), (accumulated, floors), (ours, bare) = (
            zip(*some, strict=True) for some in (one, many, memory)
        )
        told("50 M", update=updates, bare=floor, micro_steps=accumulated, bare_ones=floors)
        figure = functools.partial(ratio, better="lower")
        return [
            of("bare forward and backward of the 50 M UNet", floor, "s"),
            figure(
                "update against bare forward and backward: 50 M", updates, floor,
                bar=MOST_OVER_BARE,
            ),
            figure(
                f"update of {ACCUMULATED} micro-steps against as many bare ones: 50 M",
                accumulated, floors, bar=MOST_ACCUMULATED,
            ),
            figure(
                "resident memory against the bare step's process: 50 M", ours, bare,
                bar=MOST_MEMORY,
            ),
        ]  # fmt: skip

    def subject(self, name: str) -> Subject:
        if name == "mini SDXL":
            return Subject(model=MINI / "model", resolution=64)
        model = self.folder / "model"
        if not model.exists():
            run([sys.executable, HERE / "models.py", model])
        return Subject(model=model, resolution=models.RESOLUTION, captions="caption" in name)

    def mindbooth(self, case: Case) -> Measured:
        output = self.output()
        start = [sys.executable, "-m", "mindbooth.launch"]
        if case.workers == 1:
            command = [*start, "train", "--device_target", "CPU"]
        else:
            count = ["--device_target", "CPU", "--nproc_per_node", case.workers]
            command = [*start, "launch", *count, "--"]
        told = run([*command, *self.flags(case, output)])
        lines = metrics(output)
        return Measured(
            seconds=later([line["seconds"] for line in lines]),
            memory=peak_of_updates(told),
            collectives=tuple(int(line["collectives"] - line["skipped"]) for line in lines),
        )

    def between(self, case: Case, accumulation: int) -> tuple[float, float]:
        """Seconds of an update, and of the bare forward and backward of its batches."""
        output, kept = self.output(), self.folder / "bare.json"
        flags = [*self.flags(case, output), "--gradient_accumulation_steps", accumulation]
        run([sys.executable, HERE / "peer.py", "between", kept, "--device_target", "CPU", *flags])
        bare, more = zip(*json.loads(kept.read_text()), strict=True)
        both = [line["seconds"] for line in metrics(output)]
        return later([b - a for a, b in zip(more, both, strict=True)]), later(bare)

    def flags(self, case: Case, output: Path) -> list[object]:
        """Those of a training."""
        subject = self.subject(case.subject)
        return [
            "--pretrained_model_name_or_path", subject.model,
            "--instance_data_dir", self.pictures(subject),
            "--instance_prompt", "a photo of sks robot", "--resolution", subject.resolution,
            "--train_batch_size", 1, "--mode", case.mode, "--max_train_steps", self.updates,
            "--report_to", "none", "--latent_cache_dir", self.folder / "cache",
            "--output_dir", output, "--profile", "--compile_cache", "off",
        ]  # fmt: skip

    def peer(self, what: str, case: Case) -> Measured:
        subject = self.subject(case.subject)
        output = self.output()
        output.mkdir()
        flags = [
            what, "--model", subject.model, "--resolution", subject.resolution,
            "--mode", case.mode, "--updates", self.updates, "--left_out", LEFT_OUT,
            "--output_dir", output, *(["--captions"] if subject.captions else []),
        ]  # fmt: skip
        if case.workers == 1:
            run([sys.executable, HERE / "peer.py", *flags])
        else:
            count = ["--device_target", "CPU", "--nproc_per_node", case.workers]
            run([sys.executable, HERE / "peer.py", "launch", *count, "--", *flags])
        found = json.loads((output / "found.json").read_text())
        return Measured(seconds=later(found["seconds"]), memory=found["peak"] / 1e9)

    def pictures(self, subject: Subject) -> Path:
        """The mini SDXL's five, in the subject's size, each with a caption if it is to have one."""
        folder = self.folder / f"pictures-{subject.resolution}-{subject.captions}"
        if not folder.exists():
            folder.mkdir()
            for path in sorted((MINI / "instance").glob("*.png")):
                side = (subject.resolution, subject.resolution)
                Image.open(path).convert("RGB").resize(side).save(folder / path.name)
                if subject.captions:
                    caption = f"a photo of sks robot, {path.stem}"
                    (folder / path.name).with_suffix(".txt").write_text(caption)
        return folder

    def output(self) -> Path:
        self.runs += 1
        return self.folder / f"out-{self.runs}"


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def later(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[LEFT_OUT:])


def peak_of_updates(told: str) -> float:
    """GB, from the table that --profile prints."""
    row = re.search(r"^.*\bupdates +\d+(?: +[\d.]+){3} +([\d.]+)", told, re.MULTILINE)
    return float(row[1]) if row else sys.exit(f"no table of phases in: {told[-3000:]}")


def told(name: str, **found: Sequence[float]) -> None:
    shown = ", ".join(f"{side} {statistics.median(s):.4f} s" for side, s in found.items())
    print(f"{name}: {shown} an update", flush=True)


def run(command: Sequence[object]) -> str:
    """Runs it to its end, and returns all that it said."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
