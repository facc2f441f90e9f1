"""What a run tells: log lines, progress, metrics.jsonl, grids of pictures.

Logging is configured once, by `start()`. On a terminal, progress is a bar; in a log file it is a
line every few seconds. metrics.jsonl holds one JSON object an update and is written by rank 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mindbooth.data.atomic import replace_file

from .heartbeat import Heart

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
    """A bar on a terminal, else a log line every few seconds and at the end; and in the heartbeat.

    Use as a context manager; `advance()` after each unit of work, or `reach()`.
    """

    def __init__(self, what: str, total: int, *, unit: str, done: int = 0, show: bool = True,
                 heart: Heart | None = None) -> None:  # fmt: skip
        self._what, self._total, self._unit = what, total, unit
        self._heart = heart or Heart()
        self._lock = threading.Lock()
        self._done = self._first = done
        self._bar = sys.stderr.isatty() and show
        self._lines = show and not self._bar
        self._tqdm = tqdm(
            total=total, initial=done, desc=what, unit=unit, disable=not self._bar, leave=None,
            dynamic_ncols=True,
        )  # fmt: skip
        self._began = self._told = time.monotonic()

    def advance(self, **figures: str) -> None:
        """One unit is done; `figures` are shown behind it."""
        self.reach(self._done + 1, **figures)

    def reach(self, done: int, **figures: str) -> None:
        """So many are done, whoever did them. Any thread may call."""
        with self._lock:
            self._show(done, figures)

    def _show(self, done: int, figures: Mapping[str, str]) -> None:
        new, self._done = done - self._done, done
        self._heart.reach(done, figures)
        if self._bar:
            self._tqdm.set_postfix(figures, refresh=False)
            self._tqdm.update(new)
            return
        now = time.monotonic()
        ended = new and done == self._total
        if self._lines and (now - self._told > SECONDS_BETWEEN_LINES or ended):
            self._told = now
            log.info("%s", self._line(now - self._began, figures))

    def __enter__(self) -> Progress:
        self._heart.count(self._what, self._unit, self._first, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._heart.counted()
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
        self._complained = False
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
        """Adds a line, and makes it visible to whoever follows the file. If it can't be written,
        a full disk say, that is told once, and goes on: the figures are not worth the run."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(figures) + "\n")
            self._file.flush()
        except OSError as err:
            if not self._complained:
                log.warning("%s can't be written: %s.", self._file.name, err.strerror)
            self._complained = True

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # told when it was written to
                self._file.close()


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
    heads = _wrapped(title, font, total - 2 * gap) if title else []
    told = [_wrapped(label, font, total - 2 * gap) for label in labels]
    tall = gap + line * (len(heads) + bool(columns))
    tall += sum(line * len(lines) + cell[1] + gap for lines in told)
    sheet = Image.new("RGB", (total, tall), "white")
    pen = ImageDraw.Draw(sheet)
    y = gap
    for text in heads:
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


def png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words, or within one that is too long."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        if lines[-1] and font.getlength(lines[-1] + word.rstrip()) > width:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter.rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [" ".join(line.split()) for line in lines]
