"""Where figures and pictures are shown, beside metrics.jsonl: TensorBoard, Weights & Biases.

`check()` judges --report_to before anything large is loaded; `Trackers` is open while updates are
done, on rank 0 only. A tracker that fails on the way is given up with one warning: training goes
on, and metrics.jsonl has all figures in any case.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import yaml

from mindbooth.data.atomic import replace_file

from . import report
from .config import ConfigError, OutputConfig

if TYPE_CHECKING:
    from .run import Run
    from .validation import Made

log = logging.getLogger(__name__)

SECONDS_BETWEEN_FLUSHES = 10.0
SECONDS_TO_FINISH = 30.0  # what is not uploaded by then stays on the disk, for `wandb sync`
PROJECT = "mindbooth"


class Tracker(Protocol):
    """Something that shows figures and pictures by the number of updates done."""

    def figures(self, update: int, figures: Mapping[str, float]) -> None: ...

    def pictures(self, made: Made) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class TensorBoard:
    """An event file in `folder`.

    Written here and not by tensorboardX's SummaryWriter: that one writes in a thread which a full
    disk ends, and then waits for it forever.
    """

    def __init__(self, folder: Path, run: Run, first: int) -> None:
        with _without_torch():
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event = summary, Event
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{first}")
        except OSError as err:
            raise ConfigError(
                f"--logging_dir {folder} can't be written to: {err.strerror}. Give another one, or "
                "--report_to none."
            ) from err
        self._flushed = 0.0
        # What earlier files have from here on is hidden: this run does it again.
        again = first + 1 if first else 0
        self._file.write_event(
            Event(
                step=again,
                wall_time=time.time(),
                session_log=SessionLog(status=SessionLog.START),
            )
        )
        options = yaml.safe_dump(run.config.flat(), sort_keys=False, allow_unicode=True)
        block = "".join(f"    {line}\n" for line in options.splitlines())  # as Markdown has code
        self._add(first, summary.text("options", block))

    def figures(self, update: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._add(update, self._summary.scalar(name, value))

    def pictures(self, made: Made) -> None:
        columns = [f"seed {seed}" for seed in made.seeds]
        for name, prompt, row in zip(made.names, made.prompts, made.pictures, strict=True):
            sheet = np.asarray(report.grid([row], [prompt], columns=columns))
            self._add(
                made.update, self._summary.image(f"pictures/{name}", sheet, dataformats="HWC")
            )
        self._file.flush()

    def close(self, *, failed: bool) -> None:
        self._file.close()

    def _add(self, update: int, summary: Any) -> None:
        now = time.time()
        self._file.write_event(self._event(step=update, wall_time=now, summary=summary))
        if now - self._flushed > SECONDS_BETWEEN_FLUSHES:
            self._file.flush()
            self._flushed = now


class Wandb:
    """A run of Weights & Biases; where it goes, and whether online, is set as wandb's users do.

    Its number is kept in `folder`, so that a resumed run is the same one there. wandb's own record
    of the process is off, because it holds the command line, which may hold a token.
    """

    def __init__(self, folder: Path, run: Run, first: int) -> None:
        import wandb

        self._image = wandb.Image
        kept = folder / "wandb_run_id"
        known = first > 0 and kept.exists()
        number = kept.read_text().strip() if known else secrets.token_hex(8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=wandb.setup().settings.project or PROJECT,
                name=run.output.name,
                id=number,
                resume="allow" if known else None,
                dir=str(folder),
                config=run.config.flat(),
                settings=wandb.Settings(
                    console="off", x_disable_meta=True, finish_timeout=SECONDS_TO_FINISH
                ),
            )
        except (wandb.Error, OSError, ValueError) as err:
            raise _no_wandb(" ".join(str(err).split())) from err
        replace_file(kept, number.encode())
        self._first = self._run.step  # what is done again is there already

    def figures(self, update: int, figures: Mapping[str, float]) -> None:
        if update >= self._first:
            self._run.log(dict(figures), step=update)

    def pictures(self, made: Made) -> None:
        if made.update < self._first:
            return
        for name, prompt, row in zip(made.names, made.prompts, made.pictures, strict=True):
            shown = [
                self._image(picture, caption=f"{prompt} (seed {seed})")
                for seed, picture in zip(made.seeds, row, strict=True)
            ]
            self._run.log({f"pictures/{name}": shown}, step=made.update)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


KINDS: dict[str, Callable[[Path, Run, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def check(output: OutputConfig) -> tuple[str, ...]:
    """The names in KINDS that --report_to asks for. Raises ConfigError."""
    words = [word.strip() for word in output.report_to.split(",")]
    installed = importlib.util.find_spec("wandb") is not None
    if words == ["none"]:
        return ()
    if words == ["all"]:
        return tuple(name for name in KINDS if name != "wandb" or installed)
    for word in words:
        if word not in KINDS:
            raise ConfigError(
                f"--report_to {output.report_to}: there is no tracker {word!r}. There are "
                f"{', '.join(KINDS)}, several of them with commas, all, and none."
            )
    if "wandb" in words and not installed:
        raise ConfigError(
            f"--report_to {output.report_to}: wandb is not installed. Install it with "
            "`pip install wandb`, or leave it out."
        )
    return tuple(dict.fromkeys(words))


def check_login(names: Sequence[str]) -> None:
    """That wandb, if it is among the names, won't ask a question. Raises ConfigError. On rank 0."""
    if "wandb" not in names:
        return
    import wandb

    settings = wandb.setup().settings
    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise _no_wandb("it knows no API key")


def _no_wandb(reason: str) -> ConfigError:
    return ConfigError(
        f"--report_to wandb: it did not start ({reason}). Log in with `wandb login`, or set "
        "WANDB_MODE=offline, or leave it out."
    )


class Trackers:
    """All trackers of a run. A resumed run, with `first` updates done, continues their series."""

    def __init__(self, run: Run, first: int) -> None:
        folder = run.output / Path(run.config.output.logging_dir).expanduser()
        names = check(run.config.output) if run.comm.rank == 0 else ()
        self._open = {name: KINDS[name](folder, run, first) for name in names}

    def figures(self, update: int, figures: Mapping[str, float]) -> None:
        """What an update came to."""
        self._each(lambda tracker: tracker.figures(update, figures))

    def pictures(self, made: Made | None) -> None:
        """The pictures of an occasion, if there were any."""
        if made is not None:
            self._each(lambda tracker: tracker.pictures(made))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as err:  # what can go wrong there is no business of the training
                del self._open[name]
                reason = " ".join(str(err).split()) or type(err).__name__
                log.warning("%s failed (%s): nothing more goes there; metrics.jsonl goes on.",
                            name, reason)  # fmt: skip


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports torch where there is one: seconds, and no good beside MindSpore."""
    loaded = "torch" in sys.modules
    if not loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["torch"]
