"""`make bench`: all benchmarks, one after the other, each a process of its own; then one table.

Each script makes its figures, writes them where `--json` says, and ends with status 1 if it misses
a bar. What it misses, and that it fails, is told in the table, and the others run all the same. All
that is known so far lies in bench.json and bench.md after each script. Exit status 1: a bar was
missed, or a script failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import figures
from figures import Figure

HERE = Path(__file__).resolve().parent
BUSY = 0.3  # load average over a minute, above which figures would be the other program's too


class Script(NamedTuple):
    """full, quick: the script's options in `make bench`, and with --quick."""

    file: str
    about: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)


SCRIPTS = {
    "step": Script("step.py", "updates against mindone's own step and the bare UNet; memory"),
    "sync": Script("sync.py", "gradient synchronisation against bare AllReduce"),
    "start": Script("start.py", "from start to the first update; compile cache; launcher"),
    "scale": Script("scale.py", "the cost model against what is measured here"),
    "reading": Script(
        "reading.py",
        "batches from the cache against numpy.memmap",
        quick=("--entries", "100", "--repeats", "3"),
    ),
    "precompute": Script(
        "precompute.py",
        "encoding by two ranks against one",
        full=("--pictures", "300", "--repeats", "3"),
        quick=("--pictures", "60", "--repeats", "1"),
    ),
    "listing": Script(
        "listing.py", "100,000 pictures: before training, and in memory", quick=("--repeats", "1")
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:<12}{script.about}" for name, script in SCRIPTS.items()),
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCRIPTS, help="of those below")
    parser.add_argument("--quick", action="store_true", help="few repeats: to see that all runs")
    parser.add_argument("--output", type=Path, default=HERE.parent / "build" / "bench")
    options = parser.parse_args()
    names = [name for name in SCRIPTS if name in (options.only or SCRIPTS)]
    report = Report(machine=figures.machine(), quick=options.quick)
    if os.getloadavg()[0] > BUSY:
        say(f"load average {os.getloadavg()[0]:.2f}: something else runs, so expect noise")
    options.output.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names, start=1):
        say(f"{place} of {len(names)}: {name} ({SCRIPTS[name].about})")
        began = time.perf_counter()
        found = run(SCRIPTS[name], options.output / f"{name}.json", quick=options.quick)
        report.add(name, found)
        report.write(options.output)
        say(f"{name}: {found if isinstance(found, str) else judged(found)}, "
            f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    print(f"\n{report.as_text()}")
    say(f"also in {os.path.relpath(options.output)}/bench.md and bench.json")
    return report.status


def run(script: Script, kept: Path, *, quick: bool) -> list[Figure] | str:
    """The figures of one script, or why there are none. What it prints goes to the terminal."""
    kept.unlink(missing_ok=True)
    words = script.quick if quick else script.full
    command = [sys.executable, str(HERE / script.file), "--json", str(kept), *words]
    ended = subprocess.run(command, check=False).returncode
    try:
        found = figures.read(kept)
    except (OSError, ValueError, TypeError) as err:
        return f"exit status {ended}, no figures ({type(err).__name__})"
    if ended != figures.status(found):
        return f"exit status {ended}"
    return found


def judged(found: Sequence[Figure]) -> str:
    missed = sum(one.met is False for one in found)
    return f"{len(found)} figures, {missed} of them miss their bar" if missed else "no bar missed"


@dataclasses.dataclass(kw_only=True)
class Report:
    """What is known so far. failed: why a benchmark has no figures, by its name."""

    machine: dict[str, str]
    quick: bool
    found: dict[str, list[Figure]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, found: list[Figure] | str) -> None:
        if isinstance(found, str):
            self.failed[name] = found
        else:
            self.found[name] = found

    @property
    def all(self) -> list[Figure]:
        return [one for some in self.found.values() for one in some]

    @property
    def status(self) -> int:
        return 1 if self.failed else figures.status(self.all)

    def write(self, folder: Path) -> None:
        whole = {
            "machine": self.machine,
            "quick": self.quick,
            "figures": [
                {"benchmark": name, **dataclasses.asdict(one), "met": one.met}
                for name, some in self.found.items()
                for one in some
            ],
            "failed": self.failed,
        }
        (folder / "bench.json").write_text(figures.dumped(whole), encoding="utf-8")
        (folder / "bench.md").write_text(self.as_markdown(), encoding="utf-8")

    def as_text(self) -> str:
        return f"{figures.as_text(self.all, self.failed)}\n{self._note}\n"

    def as_markdown(self) -> str:
        facts = "".join(f"| {name} | {fact} |\n" for name, fact in self.machine.items())
        return (
            f"# Benchmarks\n\n{figures.as_markdown(self.all, self.failed)}\n{self._note}\n\n"
            f"| machine | |\n| --- | --- |\n{facts}"
        )

    @property
    def _note(self) -> str:
        note = "Medians, with the least and the most of all repeats."
        return f"{note} A quick run: too few of them to rely on." if self.quick else note


def say(line: str) -> None:
    print(f"bench: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
