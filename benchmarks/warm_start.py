"""From start to first update with a full cache, against the same without the precompute code.

`warm_start.py` runs `mindbooth train` for one update on the mini SDXL, in whole processes, in
turns: as it is, and by `warm_start.py bare`, where what a run needs is read from a file instead of
being found out (no listing, no digests, no keys, no look into the cache). Medians of the time until
the first line of metrics.jsonl.
"""

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MINI = HERE.parent / "examples" / "mini-sdxl"
MOST_RATIO = 1.15
POLL_SECONDS = 0.002


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mode", default="pynative", choices=("pynative", "graph"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds(folder, "fill", options.mode)  # fills the cache, and keeps what the run needs
        found: dict[str, list[float]] = {"train": [], "bare": []}
        for _ in range(options.repeats):
            for how, times in found.items():
                times.append(seconds(folder, how, options.mode))
    print(
        f"seconds from start to first update, mini SDXL, five pictures, {options.mode}, one process"
    )
    for how, times in found.items():
        name = {"train": "full cache", "bare": "precompute taken out"}[how]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{name:>22}: {statistics.median(times):6.2f} ({spread})")
    ratio = statistics.median(found["train"]) / statistics.median(found["bare"])
    print(f"ratio: {ratio:.3f} (bar: {MOST_RATIO} or less)")
    return int(ratio > MOST_RATIO)


def seconds(folder: Path, how: str, mode: str) -> float:
    output = Path(tempfile.mkdtemp(prefix="out-", dir=folder))
    command = [
        sys.executable, __file__, how, folder / "needed.pickle",
        "--pretrained_model_name_or_path", MINI / "model",
        "--instance_data_dir", MINI / "instance", "--instance_prompt", "a photo of sks robot",
        "--resolution", "64", "--random_flip", "--train_batch_size", "1", "--mode", mode,
        "--max_train_steps", "1", "--report_to", "none", "--device_target", "CPU",
        "--latent_cache_dir", folder / "cache", "--output_dir", output,
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    figures = output / "metrics.jsonl"
    while not (figures.exists() and figures.stat().st_size):
        if process.poll() not in (None, 0):
            assert process.stderr is not None
            sys.exit(process.stderr.read().decode()[-3000:])
        time.sleep(POLL_SECONDS)
    took = time.perf_counter() - began
    process.wait()
    return took


def train(kept: Path, argv: list[str]) -> int:
    from mindbooth.trainer.__main__ import main

    return main(argv)


def fill(kept: Path, argv: list[str]) -> int:
    """A run that keeps what it needs."""

    def change(needed: Any, precompute: Any) -> None:
        plan = needed.plan

        def planned(*args: Any, **options: Any) -> Any:
            found = plan(*args, **options)
            kept.write_bytes(pickle.dumps(found))
            return found

        needed.plan = planned

    return _changed(change, argv)


def bare(kept: Path, argv: list[str]) -> int:
    """A run that is told what it needs, and that it is there."""

    def change(needed: Any, precompute: Any) -> None:
        needed.plan = lambda *args, **options: pickle.loads(kept.read_bytes())
        precompute.fill = lambda *args, **options: None

    return _changed(change, argv)


def _changed(change: Callable[[Any, Any], None], argv: list[str]) -> int:
    from mindbooth.trainer import __main__ as trainer

    trainer.hide_chatter()  # before MindSpore is imported, as main() does it
    trainer.keep_torch_out()
    from mindbooth.trainer import needed, precompute

    change(needed, precompute)
    return trainer.main(argv)


if __name__ == "__main__":
    begin = {"train": train, "bare": bare, "fill": fill}.get(
        sys.argv[1] if len(sys.argv) > 1 else ""
    )
    sys.exit(begin(Path(sys.argv[2]), sys.argv[3:]) if begin else main())
