"""Checkpoints: the whole state of a run, complete or not there at all.

    checkpoint-N/pytorch_lora_weights.safetensors    the adapter after N updates, for other tools
    checkpoint-N/state.safetensors                   master, the optimizer's state, the average
    checkpoint-N/state.json                          the rest; written last inside the folder

A checkpoint is written in a folder aside, which is renamed when all of it is on the disk. Because
sample k's data and noise depend on (seed, k) only, N and G (samples an update) say where to go on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from mindbooth.data.atomic import replace_file
from mindbooth.data.meeting import Meeting

from . import export
from .config import ConfigError

if TYPE_CHECKING:
    from .lora import Adapter
    from .run import Run
    from .step import Step

log = logging.getLogger(__name__)

MANIFEST = "state.json"
TENSORS = "state.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything of a run but its vectors.

    update: how many updates are done. adapter: a digest of the adapter's names and shapes.
    optimizer: AdamW or Prodigy.
    """

    update: int
    seed: int
    samples_per_update: int
    loss_scale: float
    sound_updates: int
    adapter: str
    optimizer: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A checkpoint that was read: where it lies, its state, its vectors by name."""

    path: Path
    state: State
    vectors: Mapping[str, np.ndarray]


def resumable(asked: str | None, folder: Path) -> Resumed | None:
    """The checkpoint to go on from, read; None if none is asked for, or "latest" finds none."""
    if asked:
        _complete_exchange(folder)
    path = find(asked, folder) if asked else None
    if path is None:
        return None
    state, vectors = load(path)
    return Resumed(path=path, state=state, vectors=vectors)


def restore(resumed: Resumed, adapter: Adapter, step: Step) -> int:
    """Puts a checkpoint's state into the adapter and the step; returns the next update."""
    state = resumed.state
    if state.adapter != adapter.layout():
        raise ConfigError(
            f"The checkpoint {resumed.path} is of another adapter: was it made with another --rank "
            "or for another model, or with other models trained (--train_text_encoder)?"
        )
    optimizer = type(step.optimizer).__name__
    if state.optimizer != optimizer:
        raise ConfigError(
            f"The checkpoint {resumed.path} was made with {state.optimizer}, and --optimizer is "
            f"{optimizer} now: give the same one."
        )
    adapter.load(resumed.vectors["master"])
    step.optimizer.load(resumed.vectors)
    if step.average:
        if "average" not in resumed.vectors:
            raise ConfigError(
                f"The checkpoint {resumed.path} was made without --ema_decay: leave it out."
            )
        step.average.load(resumed.vectors)
    elif "average" in resumed.vectors and step.comm.rank == 0:
        log.warning("--ema_decay is not given: the average in %s is dropped.", resumed.path)
    step.scale.value, step.scale.sound = state.loss_scale, state.sound_updates
    return state.update


def save(run: Run, done: int, adapter: Adapter, step: Step, meeting: Meeting) -> None:
    """Rank 0 writes `checkpoint-<done>`; every rank returns when it is complete."""
    if run.comm.rank == 0:
        state = State(
            update=done,
            seed=run.seed,
            samples_per_update=run.batching.samples_per_update,
            loss_scale=step.scale.value,
            sound_updates=step.scale.sound,
            adapter=adapter.layout(),
            optimizer=type(step.optimizer).__name__,
        )
        vectors = {"master": adapter.master.asnumpy(), **step.optimizer.state()}
        if step.average:
            vectors |= step.average.state()
        path = write(run.output, state, vectors, step.tensors(), adapter.metadata)
        log.info("Saved %s.", path)
        if run.config.output.checkpoints_total_limit is not None:
            rotate(run.output, run.config.output.checkpoints_total_limit)
    meeting.at(f"checkpoint {done}")


def write(
    folder: Path,
    state: State,
    vectors: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Writes `folder/checkpoint-N` and returns its path. Only one process may do this."""
    final = folder / f"checkpoint-{state.update}"
    aside = folder / f".checkpoint-{state.update}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        export.adapter(aside, tensors, metadata)
        replace_file(aside / TENSORS, safetensors.save(dict(vectors)))
        replace_file(aside / MANIFEST, json.dumps(asdict(state), indent=2).encode())
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)  # room for others on a full disk
        raise
    earlier = folder / f".checkpoint-{state.update}.old"  # the same update, from before
    shutil.rmtree(earlier, ignore_errors=True)
    if final.exists():
        os.replace(final, earlier)
    os.replace(aside, final)
    _sync(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    return final


def find(asked: str, folder: Path) -> Path | None:
    """The checkpoint that --resume_from_checkpoint means; None if "latest" finds none."""
    if asked == "latest":
        return max(_numbered(folder), key=_number, default=None)
    path = Path(asked).expanduser()
    path = path if path.is_dir() else folder / asked
    if not _complete(path):
        raise ConfigError(
            f"--resume_from_checkpoint {asked}: there is no complete checkpoint. Give the path of "
            'a checkpoint-N folder, or "latest".'
        )
    return path


def load(path: Path) -> tuple[State, dict[str, np.ndarray]]:
    """A checkpoint's state, and its vectors by name. Raises ConfigError if it can't be read."""
    try:
        state = State(**json.loads((path / MANIFEST).read_text(encoding="utf-8")))
        return state, safetensors.load_file(path / TENSORS)
    except (OSError, ValueError, TypeError, SafetensorError) as err:
        raise ConfigError(f"The checkpoint {path} can't be read: {err}.") from err


def set_aside(folder: Path, resumed: Resumed | None) -> None:
    """Moves what a run must not mix with its own into `folder/earlier-N`: of one that goes on from
    a checkpoint there, the later checkpoints; of any other, all checkpoints and results."""
    goes_on = resumed is not None and resumed.path.parent.resolve() == folder.resolve()
    beyond = resumed.state.update if resumed and goes_on else -1
    found = [path for path in _numbered(folder) if _number(path) > beyond]
    if not goes_on:
        found += [path for name in export.RESULTS if (path := folder / name).exists()]
    if not found:
        return
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    log.info("What this run does not go on from is in %s now: %s.", aside,
             ", ".join(path.name for path in found))  # fmt: skip


def _complete_exchange(folder: Path) -> None:
    """Puts a checkpoint back that a run was killed in replacing; several ranks may do so."""
    for earlier in folder.glob(".checkpoint-*.old"):
        final = folder / earlier.name[1:].removesuffix(".old")
        if _complete(earlier) and not final.exists():
            with contextlib.suppress(FileNotFoundError):
                os.replace(earlier, final)


def clean(folder: Path) -> None:
    """Removes what a run that was killed while saving has left."""
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def rotate(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints. What cannot be removed is told: the
    new one is safe."""
    for path in sorted(_numbered(folder), key=_number)[:-keep]:
        going = (
            folder / f".{path.name}.gone"
        )  # out of sight whole, and for `clean` if we are killed
        try:
            os.replace(path, going)
            shutil.rmtree(going)
        except OSError as err:
            log.warning("The checkpoint %s can't be removed: %s.", path, err.strerror)


def _complete(path: Path) -> bool:
    return (path / MANIFEST).is_file() and (path / TENSORS).is_file()


def _numbered(folder: Path) -> list[Path]:
    """The complete checkpoints under the names that runs give them; renamed ones are the user's."""
    found = folder.glob("checkpoint-*")
    return [path for path in found if _NAME.fullmatch(path.name) and _complete(path)]


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _sync(folder: Path) -> None:
    """The rename itself must be on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
