"""Images a second while a cache is filled: two ranks against one, each on a core of its own.

`precompute.py` fills empty caches by `mindbooth launch --job precompute` with the VAE of the mini
SDXL and generated photographs, in turns, and prints medians. The rate is that of the entries'
appearance, from the first to the last: start-up is not in it (warm_start.py measures that).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
MINI = HERE.parent / "examples" / "mini-sdxl" / "model"
LEAST_RATIO = 1.8
SIDE = 320  # of a generated picture; those of phones are larger, and decoding costs more there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed")
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", options.pictures)
        for repeat in range(options.repeats):
            for workers in rates:
                rates[workers].append(rate(folder, workers, f"cache-{workers}-{repeat}"))
    print(f"{options.pictures} pictures of {SIDE}x{SIDE}, 64 pixels trained, mini SDXL's VAE, fp32")
    for workers, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{workers} ranks, a core each: {statistics.median(found):7.1f} images/s ({spread})")
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    print(f"ratio: {ratio:.2f} (bar: {LEAST_RATIO} or more)")
    return int(ratio < LEAST_RATIO)


def rate(folder: Path, workers: int, cache: str) -> float:
    command = [
        sys.executable, HERE / "precompute.py", "launch", "--job", "precompute",
        "--device_target", "CPU", "--nproc_per_node", str(workers), "--",
        "--pretrained_model_name_or_path", MINI, "--instance_data_dir", folder / "pictures",
        "--instance_prompt", "a photo", "--resolution", "64", "--latent_cache_dir", folder / cache,
        "--output_dir", folder / "out",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    times = sorted(path.stat().st_mtime_ns for path in (folder / cache).glob("??/*.safetensors"))
    return (len(times) - 1) / (times[-1] - times[0]) * 1e9


def write_pictures(folder: Path, count: int) -> None:
    """Smooth colours with some noise, which compress as photographs do."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + random.normal(0, 6, (SIDE, SIDE, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:04d}.jpg", quality=90)


def launch(argv: list[str]) -> int:
    """The launcher, of workers that are this file."""
    from mindbooth.launch.commands import launch

    return launch(argv, program=(str(HERE / "precompute.py"), "work"))


def work(argv: list[str]) -> int:
    """A worker, on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("RANK_ID", "0")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
    from mindbooth.trainer.__main__ import main

    return main(argv)


if __name__ == "__main__":
    begin = {"launch": launch, "work": work}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(begin(sys.argv[2:]) if begin else main())
