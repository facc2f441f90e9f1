"""Images a second while a cache is filled: two ranks against one, each on a core of its own.

`precompute.py` fills empty caches by `mindbooth launch --job precompute` with the VAE of the mini
SDXL and generated photographs, in turns, and prints medians: one rank; two ranks; and two jobs of
one rank at the same time, each with a cache of its own, which is what the machine's two cores give.
The rate is that of the entries' appearance, from the first to the last: start-up is not in it
(start.py measures that).
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
CORE = "MINDBOOTH_BENCHMARK_CORE"  # of a job's first rank
LEAST_RATIO = 1.8
SIDE = 320  # of a generated picture; those of phones are larger, and decoding costs more there

# name -> the number of ranks of each job
WAYS = {"one rank": (1,), "two ranks": (2,), "two jobs, nothing shared": (1, 1)}


def main() -> int:
    import figures

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed")
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", options.pictures)
        for repeat in range(options.repeats):
            for way, jobs in WAYS.items():
                rates[way].append(rate(folder, jobs, f"{way} {repeat}"))
    print(f"{options.pictures} pictures of {SIDE}x{SIDE}, 64 pixels trained, mini SDXL's VAE, fp32")
    for way, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{way:>26}: {statistics.median(found):6.1f} images/s ({spread})")
    one, two, apart = rates.values()
    made = [
        figures.ratio(
            "encoding by two ranks, against one", two, one, bar=LEAST_RATIO, better="higher"
        ),
        figures.ratio("encoding by two jobs that share nothing, against one", apart, one),
    ]
    print(
        f"two ranks against one: {made[0].value:.2f} (bar: {LEAST_RATIO}); "
        f"the limit: {made[1].value:.2f}"
    )
    figures.write(options.json, made)
    return figures.status(made)


def rate(folder: Path, jobs: tuple[int, ...], name: str) -> float:
    """Images a second of all jobs together, which start at the same moment."""
    caches = [folder / f"{name} {core}" for core in range(len(jobs))]
    started = [
        subprocess.Popen(
            command(folder, ranks, cache),
            env={**os.environ, CORE: str(core)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for core, (ranks, cache) in enumerate(zip(jobs, caches, strict=True))
    ]
    for job in started:
        _, told = job.communicate()
        if job.returncode:
            sys.exit(told[-3000:])
    pictures = len(list((folder / "pictures").iterdir()))
    return sum(appearance(cache, pictures + 1) for cache in caches)  # a prompt, too


def appearance(cache: Path, entries: int) -> float:
    times = sorted(path.stat().st_mtime_ns for path in cache.glob("??/*.safetensors"))
    assert len(times) == entries, f"{len(times)} entries in {cache}"
    return (len(times) - 1) / (times[-1] - times[0]) * 1e9


def command(folder: Path, ranks: int, cache: Path) -> list[str]:
    words = [
        sys.executable, HERE / "precompute.py", "launch", "--job", "precompute",
        "--device_target", "CPU", "--nproc_per_node", ranks, "--",
        "--pretrained_model_name_or_path", MINI, "--instance_data_dir", folder / "pictures",
        "--instance_prompt", "a photo", "--resolution", 64, "--latent_cache_dir", cache,
        "--output_dir", cache.with_suffix(".out"),
    ]  # fmt: skip
    return list(map(str, words))


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
    core = int(os.environ[CORE]) + int(os.environ.get("RANK_ID", "0"))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
    from mindbooth.trainer.__main__ import main

    return main(argv)


if __name__ == "__main__":
    begin = {"launch": launch, "work": work}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(begin(sys.argv[2:]) if begin else main())
