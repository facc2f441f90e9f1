"""What a run does with 100,000 pictures before it trains, and what it holds in memory.

`listing.py` makes a folder of that many small pictures, a cache with an entry for each, and runs
each measurement in fresh processes; it prints medians. A warm start is the trainer's own look at
its input, of a run on the mini SDXL: the folder is listed, digests and sizes come from what is
remembered, frames, keys and buckets are made; others are told which entries it uses; and the cache
is looked through. Modules and tokenizers are loaded before. Parts of it are measured by themselves:
listing (without captions, with a text file beside each picture, with metadata.jsonl), and what is
remembered. Memory is what is resident in such a process once 20,000 samples were read as batches,
of few pictures or of many; all that was planned is kept.
"""

import argparse
import json
import logging
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
SIDE = 8  # of the smallest picture, and of all latents: what is read does not matter here
WIDTHS, HEIGHTS = 50, 40  # how many differ
TARGET = 64
PROMPT = "a photo of sks dog"
KINDS = {"folder alone": "alone", "a .txt beside each": "texts", "metadata.jsonl": "metadata"}
ALONE = "one caption"
# Which pictures a run has, and its flags.
STARTS = {
    ALONE: ("alone",),
    "a caption each": ("metadata",),  # twice the entries
    "buckets": ("alone", "--buckets"),
}
FIRST = "first"  # the folder of one picture that a process plans before it is measured


def main() -> int:
    import figures

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cache = root / "cache"
        write_pictures(root / FIRST, 1, "alone")
        for kind in KINDS.values():
            write_pictures(root / kind, COUNT, kind)
        looked = run("fill", root / "alone", cache, repeats=1)
        listed = {
            told: run("listed", root / kind, cache, repeats=options.repeats)
            for told, kind in KINDS.items()
        }
        recalled = run("recalled", root / "alone", cache, repeats=options.repeats)
        planned = {}
        for told, (kind, *flags) in STARTS.items():
            run("fill", root / kind, cache, *flags, repeats=1)
            planned[told] = run("planned", root / kind, cache, *flags, repeats=options.repeats)
        resident = {
            (told, count): memory(root, kind, count, repeats=options.repeats)
            for told, (kind, *_) in list(STARTS.items())[:2]
            for count in (FEW, MANY)
        }
    print(f"{COUNT} pictures, seconds, medians of {options.repeats} processes")
    row("looked at for the first time (one process)", looked["looked at"])
    for told, found in listed.items():
        row(f"listed, {told}", found["listed"])
    row("digests and sizes, remembered", recalled["recalled"])
    made = []
    for told, found in planned.items():
        whole = [sum(one) for one in zip(*found.values(), strict=True)]  # of each process
        bar = 5 if told == ALONE else None  # the others have more entries, or choose sizes
        made.append(
            figures.of(f"warm start with {COUNT} pictures, {told}", whole, "s", bar=bar,
                       better="lower")
        )  # fmt: skip
        row(f"warm start, {told}", whole, f"bar: {bar}" if bar else "")
        for what, seconds in found.items():
            row(what, seconds)
    print(f"MiB resident after {SAMPLES} samples were read")
    for (told, count), found in resident.items():
        row(f"{count} pictures, {told}", found)
    for told in dict.fromkeys(told for told, _ in resident):
        few, many = resident[told, FEW], resident[told, MANY]
        bar = 1.10 if told == ALONE else None
        made.append(
            figures.ratio(f"memory with {MANY} pictures, {told}, against {FEW}", many, few,
                          bar=bar, better="lower")
        )  # fmt: skip
        more = statistics.median(many) - statistics.median(few)
        row(f"ratio, {told}", [made[-1].value], f"bar: {bar:.2f}" if bar else "")
        row("KiB more for each picture", [more * 1024 / (MANY - FEW)])
    figures.write(options.json, made)
    return figures.status(made)


def row(what: str, values: Sequence[float], bar: str = "") -> None:
    print(f"{what:>50} {statistics.median(values):8.2f}  {bar}")


def memory(root: Path, kind: str, count: int, *, repeats: int) -> list[float]:
    """MiB that are resident in processes that have so many pictures."""
    folder, cache = root / f"{kind}-{count}", root / f"cache-{kind}-{count}"
    write_pictures(folder, count, kind)
    run("fill", folder, cache, repeats=1)
    return run("resident", folder, cache, repeats=repeats)["MiB"]


def run(what: str, folder: Path, cache: Path, *flags: str, repeats: int) -> dict[str, list[float]]:
    """What `what` finds in fresh processes, by name. flags: more of the training's."""
    command = [sys.executable, __file__, what, str(folder), str(cache), *flags]
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


def fill(folder: Path, cache: Path, *flags: str) -> dict[str, float]:
    """Looks at all pictures and publishes an entry for each."""
    clock = Clock()
    later = time.time_ns() + 10**10  # or the youngest files would not be remembered
    with clock.of("looked at"):
        pictures.look_at(files_of(folder), cache, now_ns=lambda: later)
    run = look(folder, cache, *flags)
    latents, embeds = np.zeros((4, SIDE, SIDE), np.float32), np.zeros((1, 8), np.float32)
    for key in run.store.missing(run.needed.pictures):
        write_entry(cache, key, mean=latents, std=latents)
    for key in run.store.missing(run.needed.texts.values()):
        write_entry(cache, key, prompt_embeds=embeds, pooled=embeds[0])
    return clock.seconds


def listed(folder: Path, _: Path) -> dict[str, float]:
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


def planned(folder: Path, cache: Path, *flags: str) -> dict[str, float]:
    from mindbooth.trainer import precompute

    vars(precompute)["Encoders"] = gone  # there is nothing to encode
    clock = Clock()
    look(folder.with_name(FIRST), cache, *flags)  # loads the tokenizers and all modules
    with clock.of("listed and planned"):
        run = look(folder, cache, *flags)
        assert sum(map(len, run.streams[0].buckets)) == COUNT
    with run.presence:
        with clock.of("told to others who use the cache"):
            run.presence.use(run.needed.keys)
        with clock.of("looked for in the cache"):
            precompute.fill(run)
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


def gone(*_: object) -> NoReturn:
    raise AssertionError("an entry is not where it was put")


def look(folder: Path, cache: Path, *flags: str) -> "Run":
    """What a training on these pictures is, as the trainer finds it out."""
    from mindbooth.trainer import parse, place, run
    from mindbooth.trainer.device import Comm

    words = [
        "--pretrained_model_name_or_path", MINI, "--instance_data_dir", folder,
        "--instance_prompt", PROMPT, "--resolution", TARGET, "--latent_cache_dir", cache,
        "--output_dir", cache / "output", *flags,
    ]  # fmt: skip
    logging.disable(logging.WARNING)  # such as that the pictures are small
    config, _ = parse.parse(list(map(str, words)))
    return run.look(config, place.meet(config, Comm(), {}), trains=False)


def write_pictures(folder: Path, count: int, kind: str) -> None:
    """Grey rectangles of many sizes with a number behind them: no two files are the same."""
    folder.mkdir()
    names = [f"picture{number}.pgm" for number in range(count)]
    for number, name in enumerate(names):
        width, height = SIDE + number % WIDTHS, SIDE + number // WIDTHS % HEIGHTS
        header = b"P5 %d %d 255\n" % (width, height)
        (folder / name).write_bytes(header + bytes(width * height) + number.to_bytes(4, "big"))
        if kind == "texts":
            (folder / f"picture{number}.txt").write_text(caption(number))
    if kind == "metadata":
        rows = ({"file_name": name, "text": caption(n)} for n, name in enumerate(names))
        (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def caption(number: int) -> str:
    """One of its own for each, of some hundred words."""
    return f"{PROMPT} in a garden, day {number % 365} of year {number // 365}"


def write_entry(cache: Path, key: str, **tensors: Any) -> None:
    """As a store does it, but without waiting for the disk."""
    path = Store(cache).path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(entry.pack(key, tensors, {}))


MEASURES = (fill, listed, recalled, planned, resident)

if __name__ == "__main__":
    measure = {one.__name__: one for one in MEASURES}.get("".join(sys.argv[1:2]))
    if measure is None:
        sys.exit(main())
    json.dump(measure(*map(Path, sys.argv[2:4]), *sys.argv[4:]), sys.stdout)
