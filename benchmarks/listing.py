"""What a run does with 100,000 pictures before it trains, and what it holds in memory.

`listing.py` makes a folder of that many small pictures, a cache with an entry for each, and runs
each measurement in fresh processes; it prints medians. A warm start is the trainer's own look at
its input, of a run on the mini SDXL: the folder is listed, digests and sizes come from what is
remembered, frames, keys and the order of samples are made; and then the cache is looked through.
Modules and tokenizers are loaded before. Parts of it are measured by themselves: listing (without
captions, with a text file beside each picture, with metadata.jsonl), and what is remembered. Memory
is what is resident in such a process once 20,000 samples were read as batches, of few pictures or
of many; all that was planned is kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mindbooth.data import collector, entry, examples, pictures
from mindbooth.data.batches import Embedded, Reader, Side, Source
from mindbooth.data.cache import Store
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.stream import micro_batch

if TYPE_CHECKING:
    from mindbooth.trainer.run import Run

MINI = Path(__file__).resolve().parent.parent / "examples" / "mini-sdxl" / "model"
COUNT = 100_000
FEW, MANY = 1_000, 20_000
SAMPLES = 20_000
BATCH = 4
SIDE = 8  # of a picture, and of its latents: what is read does not matter here, but how often
TARGET = 64
PROMPT = "a photo of sks dog"
KINDS = {"folder alone": "alone", "a .txt beside each": "texts", "metadata.jsonl": "metadata"}
FIRST = "first"  # the folder of one picture that a process plans before it is measured


def main() -> int:
    import figures

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind in KINDS.values():
            write_pictures(root / kind, COUNT, kind)
        looked = run("fill", root / "alone", root / "cache", repeats=1)
        listed = {
            told: run("listed", root / kind, root / "cache", repeats=options.repeats)
            for told, kind in KINDS.items()
        }
        recalled = run("recalled", root / "alone", root / "cache", repeats=options.repeats)
        write_pictures(root / FIRST, 1, "alone")
        planned = run("planned", root / "alone", root / "cache", repeats=options.repeats)
        resident = {}
        for count in (FEW, MANY):
            folder, cache = root / f"{count}", root / f"cache-{count}"
            write_pictures(folder, count, "alone")
            run("fill", folder, cache, repeats=1)
            resident[count] = run("resident", folder, cache, repeats=options.repeats)
    whole = [sum(one) for one in zip(*planned.values(), strict=True)]  # of each process
    few, many = resident[FEW]["MiB"], resident[MANY]["MiB"]
    made = [
        figures.of(f"warm start with {COUNT} pictures", whole, "s", bar=5, better="lower"),
        figures.ratio(
            f"memory with {MANY} pictures, against {FEW}", many, few, bar=1.10, better="lower"
        ),
    ]
    print(f"{COUNT} pictures, seconds, medians of {options.repeats} processes")
    row("looked at for the first time (one process)", looked["looked at"])
    for told, found in listed.items():
        row(f"listed, {told}", found["listed"])
    row("digests and sizes, remembered", recalled["recalled"])
    row("warm start, in all", whole, "bar: 5")
    for what, seconds in planned.items():
        row(f"  {what}", seconds)
    print(f"MiB resident after {SAMPLES} samples were read")
    for count, found in resident.items():
        row(f"{count} pictures", found["MiB"])
    more = statistics.median(many) - statistics.median(few)
    row("KiB more for each picture", [more * 1024 / (MANY - FEW)])
    row("ratio", [made[1].value], "bar: 1.10")
    figures.write(options.json, made)
    return figures.status(made)


def row(what: str, values: Sequence[float], bar: str = "") -> None:
    print(f"{what:>45} {statistics.median(values):8.2f}  {bar}")


def run(what: str, folder: Path, cache: Path, *, repeats: int) -> dict[str, list[float]]:
    """What `what` finds in fresh processes, by name."""
    command = [sys.executable, __file__, what, str(folder), str(cache)]
    found = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(repeats)
    ]
    return {name: [one[name] for one in found] for name in found[0]}


class Clock:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began


def fill(folder: Path, cache: Path) -> dict[str, float]:
    """Looks at all pictures and publishes an entry for each."""
    clock = Clock()
    later = time.time_ns() + 10**10  # or the youngest files would not be remembered
    with clock.of("looked at"):
        pictures.look_at(files_of(folder), cache, now_ns=lambda: later)
    needed = look(folder, cache).needed
    latents, embeds = np.zeros((4, SIDE, SIDE), np.float32), np.zeros((1, 8), np.float32)
    for key in needed.pictures:
        write_entry(cache, key, mean=latents, std=latents)
    for key in needed.texts.values():
        write_entry(cache, key, prompt_embeds=embeds, pooled=embeds[0])
    return clock.seconds


def listed(folder: Path, cache: Path) -> dict[str, float]:
    clock = Clock()
    with clock.of("listed"):
        files_of(folder)
    return clock.seconds


def recalled(folder: Path, cache: Path) -> dict[str, float]:
    clock = Clock()
    files = files_of(folder)
    with clock.of("recalled"):
        pictures.look_at(files, cache)
    return clock.seconds


@collector.at_rest()
def files_of(folder: Path) -> list[str]:
    return [example.file for example in examples.from_folder(folder, caption=PROMPT).examples]


def planned(folder: Path, cache: Path) -> dict[str, float]:
    clock = Clock()
    look(folder.with_name(FIRST), cache)  # loads the tokenizers and all modules
    with clock.of("planned"):
        run = look(folder, cache)
        assert sum(map(len, run.streams[0].buckets)) == COUNT
    with clock.of("looked for in the cache"):
        absent = run.store.missing(run.needed.keys)
    assert not absent, f"{len(absent)} entries are not where they were put"
    return clock.seconds


def resident(folder: Path, cache: Path) -> dict[str, float]:
    """Reads batches as the training does, and asks what is in memory then."""
    run = look(folder, cache)
    read = Reader(store=run.store, repair=gone)
    side = Side(
        stream=run.streams[0],
        items=run.needed.items,
        objective=lambda x, eps, u: (x + eps, u, eps, x),
    )
    source = Source(read=read, sides=(side,), texts=Embedded(read=read), scale=1.0)
    with Prefetch(
        lambda update: source.assemble(
            micro_batch(update, 0, 0, batch=BATCH, accumulation=1, world_size=1)
        ),
        range(SAMPLES // BATCH),
    ) as batches:
        for _ in batches:
            pass
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}


def gone(key: str) -> NoReturn:
    raise AssertionError(f"entry {key} is not where it was put")


def look(folder: Path, cache: Path) -> "Run":
    """What a training on these pictures is, as the trainer finds it out."""
    from mindbooth.trainer import parse, place, run
    from mindbooth.trainer.device import Comm

    words = [
        "--pretrained_model_name_or_path", MINI, "--instance_data_dir", folder,
        "--instance_prompt", PROMPT, "--resolution", TARGET, "--min_image_size", 1,
        "--latent_cache_dir", cache, "--output_dir", cache / "output",
    ]  # fmt: skip
    config, _ = parse.parse(list(map(str, words)))
    return run.look(config, place.meet(config, Comm(), {}), trains=False)


def write_pictures(folder: Path, count: int, kind: str) -> None:
    """Grey rectangles with a number behind them, so that no two files are the same."""
    folder.mkdir()
    header = b"P5 %d %d 255\n" % (SIDE, SIDE * 3 // 2)
    names = [f"picture{number}.pgm" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(
            header + bytes(SIDE * SIDE * 3 // 2) + number.to_bytes(4, "big")
        )
        if kind == "texts":
            (folder / f"picture{number}.txt").write_text(caption(number))
    if kind == "metadata":
        rows = ({"file_name": name, "text": caption(n)} for n, name in enumerate(names))
        (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def caption(number: int) -> str:
    return f"{PROMPT} in a garden with flowers under a blue sky, taken at noon on day {number}"


def write_entry(cache: Path, key: str, **tensors: Any) -> None:
    """As a store does it, but without waiting for the disk."""
    path = Store(cache).path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(entry.pack(key, tensors, {}))


MEASURES = (fill, listed, recalled, planned, resident)

if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        measure = {one.__name__: one for one in MEASURES}[sys.argv[1]]
        json.dump(measure(Path(sys.argv[2]), Path(sys.argv[3])), sys.stdout)
    else:
        sys.exit(main())
