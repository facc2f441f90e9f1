"""Batches read from the cache, against the same bytes read with numpy.memmap.

Entries of SDXL at 1024 pixels (mean and std, 4 x 128 x 128 float32) lie in files of their own and
in the page cache. Each way ends with them copied into the arrays of a batch, so that all bytes are
touched; the ways take turns over all entries, and medians of these turns are compared. Then what a
first read costs more (SHA-256), and what of publishing an entry is fsync.
"""

import argparse
import hashlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import figures
from mindbooth.data.cache import Store

SHAPE = (4, 128, 128)
HALF = 4 * 4 * 128 * 128  # bytes of mean, and of std
BATCH = 4
BAR = 0.8
COMPARED = "numpy.memmap"
# Takes the instructions for SHA away from OpenSSL: those of x86, those of Arm.
NO_EXTENSIONS = {"OPENSSL_ia32cap": ":~0x20000000", "OPENSSL_armcap": "0"}

Way = Callable[[str, int], None]  # a key, and its place in the batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figure there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = [reading(Path(folder), options.entries, options.repeats)]
        hashing()
        publishing(Path(folder))
    figures.write(options.json, found)
    return figures.status(found)


def reading(folder: Path, entries: int, repeats: int) -> figures.Figure:
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(entries)]
    store = Store(folder)
    random = np.random.default_rng(0)
    for key in keys:
        arrays = drawn(random, SHAPE)
        store.publish(key, arrays, note={"picture": "0001.jpg", "vae": "vae"})
    last = np.stack([arrays["mean"], arrays["std"]])
    batch = np.empty((2, BATCH, *SHAPE), np.float32)
    found = {name: list[float]() for name in ways(store, keys, batch, last)}
    for _ in range(repeats + 1):  # the first turn fills the page cache
        for name, way in ways(store, keys, batch, last).items():
            began = time.perf_counter()
            for number, key in enumerate(keys):
                way(key, number % BATCH)
            found[name].append((time.perf_counter() - began) / entries)
            assert np.array_equal(batch[:, (entries - 1) % BATCH], last), name
    seconds = {name: statistics.median(times[1:]) for name, times in found.items()}
    print(f"{entries} entries of {2 * HALF >> 10} KiB into batches of {BATCH}, warm page cache,")
    print(f"medians of {repeats} turns (least to most)\n")
    print(f"{'way':<38}{'us an entry':>22}{'GiB/s':>8}{'x ' + COMPARED:>16}")
    for name, median in seconds.items():
        least, most = min(found[name][1:]) * 1e6, max(found[name][1:]) * 1e6
        times = f"{median * 1e6:.0f} ({least:.0f} to {most:.0f})"
        rate = 2 * HALF / median / 2**30
        print(f"{name:<38}{times:>22}{rate:>8.1f}{seconds[COMPARED] / median:>16.2f}")
    ratio = figures.ratio(
        f"entries read from the cache, against {COMPARED}",
        found[COMPARED][1:],
        found["Store.read"][1:],
        bar=BAR,
        better="higher",
    )
    print(f"\nStore.read is {ratio.value:.2f} x {COMPARED}; the bar is {BAR} x.")
    return ratio


def ways(
    store: Store, keys: list[str], batch: NDArray[np.float32], memory: NDArray[np.float32]
) -> Mapping[str, Way]:
    """The ways of a turn. memory: an entry that is there already, (2, *SHAPE)."""
    paths = {key: str(store.path(key)) for key in keys}
    size = os.path.getsize(paths[keys[0]])
    start = size - 2 * HALF
    fresh = Store(store.root)  # has verified nothing yet

    def floats(content: mmap.mmap) -> NDArray[np.float32]:
        return np.frombuffer(content, np.float32, offset=start).reshape(2, *SHAPE)

    def copy(source: Store, key: str, place: int) -> None:
        entry = source.read(key)
        batch[0, place], batch[1, place] = entry["mean"], entry["std"]

    def numpy_memmap(key: str, place: int) -> None:
        mean, std = np.memmap(paths[key], np.float32, "r", offset=start, shape=memory.shape)
        batch[0, place], batch[1, place] = mean, std

    def mapped(key: str, place: int) -> None:
        number = os.open(paths[key], os.O_RDONLY)
        mean, std = floats(mmap.mmap(number, size, prot=mmap.PROT_READ))
        os.close(number)
        batch[0, place], batch[1, place] = mean, std

    def read_into(content: mmap.mmap, key: str, place: int) -> None:
        number = os.open(paths[key], os.O_RDONLY)
        os.readv(number, [content])
        os.close(number)
        mean, std = floats(content)
        batch[0, place], batch[1, place] = mean, std

    def from_memory(key: str, place: int) -> None:
        batch[0, place], batch[1, place] = memory

    def fresh_memory() -> mmap.mmap:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    same = fresh_memory()
    return {
        COMPARED: numpy_memmap,
        "Store.read": lambda key, place: copy(store, key, place),
        "Store.read, first time (verified)": lambda key, place: copy(fresh, key, place),
        "mapped without NumPy": mapped,
        "read into the same memory": lambda key, place: read_into(same, key, place),
        "read into fresh memory": lambda key, place: read_into(fresh_memory(), key, place),
        "copied from memory, nothing read": from_memory,
    }


def hashing() -> None:
    with_them, without = (seconds_of_sha256(env) for env in ({}, NO_EXTENSIONS))
    print(
        f"\nSHA-256 of {2 * HALF >> 10} KiB: {with_them * 1e6:.0f} us; "
        f"{without * 1e6:.0f} us without the processor's instructions for it"
    )


def seconds_of_sha256(env: Mapping[str, str]) -> float:
    script = (
        "import hashlib, statistics, time\n"
        f"content, times = bytes({2 * HALF}), []\n"
        "for _ in range(50):\n"
        "    began = time.perf_counter()\n"
        "    hashlib.sha256(content)\n"
        "    times.append(time.perf_counter() - began)\n"
        "print(statistics.median(times))\n"
    )
    command = [sys.executable, "-c", script]
    return float(subprocess.check_output(command, env={**os.environ, **env}, text=True))


def publishing(folder: Path) -> None:
    """Of small entries (a picture of 128 pixels) and of those above."""
    print()
    for side in (16, 128):
        store = Store(folder / str(side))
        arrays = drawn(np.random.default_rng(0), (4, side, side))
        whole, flushing = [], []
        for number in range(100):
            key = hashlib.sha256(str(number).encode()).hexdigest()
            began = time.perf_counter()
            store.publish(key, arrays, note={})
            whole.append(time.perf_counter() - began)
            flushing.append(seconds_of_fsync(folder / f"{side}-{number}", store.path(key)))
        published, flushed = statistics.median(whole) * 1e3, statistics.median(flushing) * 1e3
        print(
            f"publishing {sum(array.nbytes for array in arrays.values()) >> 10:>4} KiB: "
            f"{published:.2f} ms, of which fsync {flushed:.2f} ms ({flushed / published:.0%})"
        )


def seconds_of_fsync(copy: Path, original: Path) -> float:
    with copy.open("xb", buffering=0) as file:
        file.write(original.read_bytes())
        began = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - began


def drawn(random: np.random.Generator, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    return {
        "mean": random.standard_normal(shape, np.float32),
        "std": random.random(shape, np.float32),
    }


if __name__ == "__main__":
    sys.exit(main())
