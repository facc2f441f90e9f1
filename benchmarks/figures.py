"""Figures of benchmarks: medians with their spread, held to a bar; as JSON, and as one table.

Every benchmark makes `Figure`s and writes them with `write()`; `bench.py` collects them. A ratio is
of medians, and its spread that of the pairs that were measured in one turn, one after the other: it
lies between the least and the greatest of these. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mindbooth", "mindspore", "mindone", "transformers", "numpy")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
HEADS = ("figure", "measured", "bar", "")

Better = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table.

    value: the median. low, high: the least and the most of the repeats. bar: what `value` must
    reach if `better` is "higher", or must not exceed if it is "lower". how: the command.
    """

    figure: str
    value: float
    unit: str
    low: float
    high: float
    bar: float | None = None
    better: Better | None = None
    how: str

    def __post_init__(self) -> None:
        if self.bar is not None and self.better is None:
            raise ValueError(f"{self.figure} has a bar, but neither higher nor lower is better")

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


def of(figure: str, values: Sequence[float], unit: str, *, bar: float | None = None,
       better: Better | None = None, how: str | None = None) -> Figure:  # fmt: skip
    """The figure of repeats."""
    return Figure(
        figure=figure,
        value=statistics.median(values),
        unit=unit,
        low=min(values),
        high=max(values),
        bar=bar,
        better=better,
        how=command(sys.argv) if how is None else how,
    )


def ratio(figure: str, above: Sequence[float], below: Sequence[float], *, bar: float | None = None,
          better: Better | None = None, how: str | None = None) -> Figure:  # fmt: skip
    """That of two medians; `above` and `below` were measured in turns, and are as many."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    whole = of(figure, pairs, "x", bar=bar, better=better, how=how)
    return dataclasses.replace(whole, value=statistics.median(above) / statistics.median(below))


def status(found: Iterable[Figure]) -> int:
    """The exit status of a benchmark: 1 if a bar is missed."""
    return int(any(one.met is False for one in found))


def command(argv: Sequence[str]) -> str:
    """The command of a process, from the checkout's root, without where its figures go."""
    script, *words = argv
    path = Path(script).resolve()
    shown = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    if "--json" in words:
        place = words.index("--json")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--json=")]
    return shlex.join(["python", shown, *words])


def write(path: Path | None, found: Iterable[Figure]) -> None:
    """A list of them as JSON; nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dumped([dataclasses.asdict(one) for one in found]), encoding="utf-8")


def read(path: Path) -> list[Figure]:
    """What `write` wrote. Raises OSError, ValueError, TypeError."""
    return [Figure(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def dumped(what: object) -> str:
    return json.dumps(what, indent=1, ensure_ascii=False) + "\n"


# Tables


def as_text(found: Sequence[Figure], failed: Mapping[str, str] | None = None) -> str:
    """The table for a terminal. failed: benchmarks that made no figures, and why."""
    rows = [HEADS, *_rows(found, failed or {})]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


def as_markdown(found: Sequence[Figure], failed: Mapping[str, str] | None = None) -> str:
    """The table with the command behind each figure."""
    hows = [f"`{one.how}`" for one in found] + [""] * len(failed or {})
    rows = [(*row, how) for row, how in zip(_rows(found, failed or {}), hows, strict=True)]
    lines = [(*HEADS, "command"), ("---",) * (len(HEADS) + 1), *rows]
    return "".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines
    )


def _rows(found: Sequence[Figure], failed: Mapping[str, str]) -> list[tuple[str, ...]]:
    words = {True: "met", False: "missed", None: ""}
    return [
        *((one.figure, measured(one), _bar(one), words[one.met]) for one in found),
        *((name, why, "", "failed") for name, why in failed.items()),
    ]


def measured(one: Figure) -> str:
    """Median, unit and spread: 1.52 x (1.48 to 1.61)."""
    told = f"{number(one.value)} {one.unit}"
    if one.low == one.high:
        return told
    return f"{told} ({number(one.low)} to {number(one.high)})"


def _bar(one: Figure) -> str:
    if one.bar is None:
        return ""
    return f"{'at least' if one.better == 'higher' else 'at most'} {number(one.bar)}"


def number(x: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


# The machine


def machine() -> dict[str, str]:
    """What figures depend on, by name: no host's name and no path is among it."""
    memory = _field(_text("/proc/meminfo"), "MemTotal").removesuffix("kB").strip()
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    kernel = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    facts = {
        "processor": _field(_text("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory) / 2**20:.1f} GiB" if memory else "",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": ", ".join(filter(None, (system, kernel))),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "revision": _revision(),
        **{name: os.environ.get(name, "") for name in THREADS},
    }
    return {name: fact for name, fact in facts.items() if fact}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The first `name : value` of a file below /proc."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _revision() -> str:
    """The commit of this checkout, and whether files differ from it; "" without git."""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head} with changes" if changes else head
