"""The cost model behind `mindbooth plan`, against updates of 1, 2 and 4 workers on this machine.

`scale.py` runs `mindbooth launch` on the mini SDXL (graph mode, OMP_NUM_THREADS=1) with 1, 2 and 4
workers, in turns and in whole processes, and between them bare AllReduce calls of two sizes on 2
workers. One worker's updates give the compute, its spread and how many cores it keeps busy, the
calls a link's latency and bandwidth. From these alone, the formulas of launch/estimate.py say what
an update of 2 and of 4 workers takes: the slowest worker's compute and the all-reduce, and where
all workers keep more cores busy than there are, as many times that. Medians of `seconds` in
metrics.jsonl, without the first updates. Exit status 1: a prediction is off by more than 25 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, as_text, of, status, write
from mindbooth.launch.estimate import Link, all_reduce, slowest

THIS = Path(__file__).resolve()
MINI = THIS.parents[1] / "examples" / "mini-sdxl"
WORKERS = (1, 2, 4)
RANK = 8
WIRE = 2 * (93184 + 2)  # bytes: the mini SDXL's numbers at that rank in fp16, loss, stop request
BUSY = "busy.json"
LEFT_OUT = 5  # updates at the start of a process
SIZES = (20_000, 1_000_000)  # numbers in fp16 of the bare calls
CALLS = 60
MOST_OFF = 25.0  # %
NORMAL_QUARTILES = 1.349  # between the quartiles of a normal distribution, in standard deviations
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one turn says of this machine. seconds: of an update of one worker; spread: relative;
    busy: cores that it keeps busy; cores: those of the machine."""

    seconds: float
    spread: float
    busy: float
    link: Link
    cores: int

    def predict(self, workers: int) -> float:
        """Seconds of an update."""
        compute = self.seconds * (1 + self.spread * slowest(workers))
        reduced = all_reduce(WIRE, 1, workers, self.link, self.link)
        return (compute + reduced) * max(1.0, workers * self.busy / self.cores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="one repeat of fewer updates")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.updates = 1, 15
    cores = len(os.sched_getaffinity(0))
    fits: list[Fit] = []
    measured: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(options.repeats):
            link = fitted(calls(folder / f"calls-{repeat}"))
            for workers in WORKERS:
                output = folder / f"{repeat}-{workers}"
                seconds = updates(output, workers, options.updates)
                measured[workers].append(statistics.median(seconds))
                if workers == 1:
                    fits.append(
                        Fit(
                            seconds=statistics.median(seconds),
                            spread=spread(seconds),
                            busy=json.loads((output / BUSY).read_text()),
                            link=link,
                            cores=cores,
                        )
                    )
            tell(fits[-1], {workers: found[-1] for workers, found in measured.items()})
    found = figures(fits, measured)
    print(as_text(found), end="")
    write(options.json, found)
    return status(found)


def figures(fits: Sequence[Fit], measured: dict[int, list[float]]) -> list[Figure]:
    found = [
        of("spread of a worker's updates", [100 * fit.spread for fit in fits], "%"),
        of("cores that a worker keeps busy", [fit.busy for fit in fits], ""),
        of("latency of a step of AllReduce", [1e6 * fit.link.latency for fit in fits], "us"),
        of("bandwidth of AllReduce", [fit.link.bandwidth / 1e6 for fit in fits], "MB/s"),
    ]
    for workers in WORKERS[1:]:
        pairs = zip(fits, measured[workers], strict=True)
        off = [abs(fit.predict(workers) / seconds - 1) for fit, seconds in pairs]
        predicted = statistics.median(fit.predict(workers) for fit in fits)
        whole = abs(predicted / statistics.median(measured[workers]) - 1)
        found += [
            of(f"predicted update of {workers} workers", [f.predict(workers) for f in fits], "s"),
            of(f"measured update of {workers} workers", measured[workers], "s"),
            Figure(
                figure=f"prediction of {workers} workers is off by",
                value=100 * whole,
                unit="%",
                low=100 * min(*off, whole),
                high=100 * max(*off, whole),
                bar=MOST_OFF,
                better="lower",
                how=found[0].how,
            ),
        ]
    return found


def updates(output: Path, workers: int, count: int) -> list[float]:
    """Seconds of each update of rank 0, without the first ones."""
    flags = [
        "--pretrained_model_name_or_path", MINI / "model",
        "--instance_data_dir", MINI / "instance", "--instance_prompt", "a photo of sks robot",
        "--resolution", 64, "--center_crop", "--train_batch_size", 2, "--rank", RANK,
        "--mode", "graph", "--max_train_steps", count, "--seed", 0, "--report_to", "none",
        "--latent_cache_dir", output.parent / "cache", "--output_dir", output,
        "--compile_cache", "off",
    ]  # fmt: skip
    launch("train", workers, flags)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines][LEFT_OUT:]


def spread(seconds: Sequence[float]) -> float:
    """The standard deviation over the mean, from the quartiles: a hiccup of the machine is none."""
    first, middle, third = statistics.quantiles(seconds, n=4)
    return (third - first) / NORMAL_QUARTILES / middle


def calls(output: Path) -> list[float]:
    """Seconds of a bare AllReduce on two workers, for each of SIZES."""
    output.mkdir()
    launch("reduce", 2, ["--output_dir", output])
    found: list[float] = json.loads((output / "calls.json").read_text())
    return found


def fitted(seconds: Sequence[float]) -> Link:
    """Between two workers, a call of S bytes takes 2 latency + S / bandwidth."""
    small, large = (2 * size for size in SIZES)
    if seconds[1] <= seconds[0]:
        sys.exit(f"{large} bytes went as fast as {small}: something else runs on this machine.")
    bandwidth = (large - small) / (seconds[1] - seconds[0])
    return Link(max(0.0, (seconds[0] - small / bandwidth) / 2), bandwidth)


def launch(what: str, workers: int, flags: Sequence[object]) -> None:
    """`mindbooth launch`, of workers that are this file."""
    code = "import sys; from mindbooth.launch.commands import launch; "
    code += f"sys.exit(launch(sys.argv[1:], program=({str(THIS)!r}, {what!r})))"
    options = ["--device_target", "CPU", "--nproc_per_node", workers, "--"]
    done = subprocess.run(
        list(map(str, [sys.executable, "-c", code, *options, *flags])),
        env={**os.environ, **THREADS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:])


def tell(fit: Fit, measured: dict[int, float]) -> None:
    parts = [f"{n}: {seconds:.4f} s" for n, seconds in measured.items()]
    parts += [f"{n} predicted: {fit.predict(n):.4f} s" for n in WORKERS[1:]]
    print("an update of workers " + ", ".join(parts), flush=True)


def train(argv: list[str]) -> int:
    """A worker as `mindbooth launch` starts it, whose rank 0 also tells how many cores it kept busy
    from update to update."""
    from mindbooth.trainer import __main__ as trainer

    trainer.hide_chatter()  # before MindSpore is imported, as main() does it
    trainer.keep_torch_out()
    from mindbooth.trainer.step import Step

    marks, step = [], Step.__call__

    def timed(self, *args, **options):  # type: ignore[no-untyped-def]
        result = step(self, *args, **options)
        marks.append((time.process_time(), time.perf_counter()))
        return result

    Step.__call__ = timed
    status = trainer.main(argv)
    if os.environ.get("RANK_ID") == "0":
        (used, began), (used_then, ended) = marks[LEFT_OUT - 1], marks[-1]
        output = Path(argv[argv.index("--output_dir") + 1])
        (output / BUSY).write_text(json.dumps((used_then - used) / (ended - began)))
    return status


def reduce(argv: list[str]) -> int:
    """A worker that does nothing but reduce."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--device_target")
    options = parser.parse_args(argv)

    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer import device
    from mindbooth.trainer.__main__ import hide_chatter, keep_torch_out

    keep_torch_out()
    hide_chatter()
    comm = device.start(Placement.from_environ(os.environ), target=options.device_target)
    import numpy as np
    from mindspore import float16, ops

    found = []
    for size in SIZES:
        message = ops.zeros((size,), float16)
        seconds = []
        for _ in range(CALLS):
            comm.sum(np.zeros(1))  # so that all begin together
            began = time.perf_counter()
            comm.all_reduce(message).asnumpy()
            seconds.append(time.perf_counter() - began)
        found.append(statistics.median(seconds[LEFT_OUT:]))
    if comm.rank == 0:
        (options.output_dir / "calls.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    begin = {"train": train, "reduce": reduce}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(begin(sys.argv[2:]) if begin else main())
