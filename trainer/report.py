"""What a run tells: log lines, progress, metrics.jsonl, timings, grids of pictures.

Logging is configured once, by `start()`. On a terminal, progress is a bar; in a log file it is a
line every few seconds. metrics.jsonl holds one JSON object an update and is written by rank 0.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mindbooth.data.atomic import replace_file

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger(__name__)

PACKAGES = ("mindbooth", "mindspore", "mindone", "transformers", "numpy")
SECONDS_BETWEEN_LINES = 5.0
LEAST = 128


def start() -> None:
    """Sets logging up: our own lines from INFO on, other packages' from ERROR on."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mindbooth").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="mindspore")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Progress:
    """A bar on a terminal, else a log line every few seconds and at the end.

    Use as a context manager; `advance()` after each unit of work.
    """

    def __init__(self, what: str, total: int, *, unit: str, done: int = 0, show: bool = True):
        self._what, self._total, self._unit = what, total, unit
        self._done = self._first = done
        self._bar = sys.stderr.isatty() and show
        self._lines = show and not self._bar
        self._tqdm = tqdm(
            total=total, initial=done, desc=what, unit=unit, disable=not self._bar, leave=True,
            dynamic_ncols=True,
        )  # fmt: skip
        self._began = self._told = time.monotonic()

    def advance(self, **figures: str) -> None:
        """One unit is done; `figures` are shown behind it."""
        self._done += 1
        if self._bar:
            self._tqdm.set_postfix(figures, refresh=False)
            self._tqdm.update()
            return
        now = time.monotonic()
        if self._lines and (now - self._told > SECONDS_BETWEEN_LINES or self._done == self._total):
            self._told = now
            log.info("%s", self._line(now - self._began, figures))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._tqdm.close()

    def _line(self, elapsed: float, figures: Mapping[str, str]) -> str:
        rate = (self._done - self._first) / max(elapsed, 1e-9)
        left = tqdm.format_interval(int((self._total - self._done) / rate)) if rate else "?"
        shown = "".join(f", {name} {value}" for name, value in figures.items())
        return (
            f"{self._what} {self._done}/{self._total}{shown}, {rate:.2f} {self._unit}/s, "
            f"{left} left"
        )


class Metrics:
    """metrics.jsonl: one line an update. A resumed run continues it at its own first update."""

    def __init__(self, run: Run, first: int) -> None:
        self._file = None
        if run.comm.rank != 0:
            return
        path = run.output / "metrics.jsonl"
        kept = b""
        if first and path.exists():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    kept += line + b"\n" if json.loads(line)["step"] <= first else b""
        replace_file(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **figures: Any) -> None:
        """Adds a line, and makes it visible to whoever follows the file."""
        if self._file is not None:
            self._file.write(json.dumps(figures) + "\n")
            self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class Phases:
    """Seconds spent in each phase of a run, by name, in the order of their first use."""

    seconds: dict[str, float] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times what is inside the `with`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.times[name] = self.times.get(name, 0) + 1

    def table(self) -> str:
        """The timings, a line a phase."""
        lines = [f"{'phase':<22}{'times':>7}{'seconds':>10}{'each':>10}"]
        for name, seconds in self.seconds.items():
            times = self.times[name]
            lines.append(f"{name:<22}{times:>7}{seconds:>10.2f}{seconds / times:>10.3f}")
        return "\n".join(lines)


def grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], *, title: str = "",
         columns: Sequence[str] = ()) -> Image.Image:  # fmt: skip
    """Rows of pictures of one size, each with its label above it, in one picture.

    columns: headings above the columns. Pictures smaller than LEAST pixels are enlarged by a
    whole factor, so that single pixels stay visible.
    """
    width, height = rows[0][0].size
    zoom = max(1, -(-LEAST // min(width, height)))
    cell = (width * zoom, height * zoom)
    gap, line = 6, 18 if cell[0] < 512 else 30
    font = ImageFont.load_default(size=line - 5)
    across = max(len(row) for row in rows)
    total = max(across * (cell[0] + gap) + gap, 320)
    letters = max(20, int(total / (line - 5) * 1.9))
    told = [textwrap.wrap(label, letters) or [""] for label in labels]
    heads = [*textwrap.wrap(title, letters), *([""] if columns else [])]
    tall = sum(cell[1] + gap + line * len(lines) for lines in told) + line * len(heads) + gap
    sheet = Image.new("RGB", (total, tall), "white")
    pen = ImageDraw.Draw(sheet)
    y = gap
    for text in heads[: len(heads) - bool(columns)]:
        pen.text((gap, y), text, fill="black", font=font)
        y += line
    if columns:
        for i, text in enumerate(columns):
            pen.text((gap + i * (cell[0] + gap), y), text, fill="black", font=font)
        y += line
    for row, lines in zip(rows, told, strict=True):
        for text in lines:
            pen.text((gap, y), text, fill="black", font=font)
            y += line
        for i, picture in enumerate(row):
            enlarged = picture.resize(cell, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (gap + i * (cell[0] + gap), y))
        y += cell[1] + gap
    return sheet
