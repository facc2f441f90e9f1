"""Trainings in which something goes wrong: `faulty.py RUNS.json [flags]`, as several.py.

What goes wrong stands in the name of a run's output folder:

    killed...      this process is ended by SIGKILL in the middle of update CUT (from 0): after the
                   backward pass, before anything of the update is written
    once...        gradients of update BAD are infinite on rank BAD_RANK, the first time
    always...      they stay so
"""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import several

CUT = 5
BAD, BAD_RANK = 3, 1
TIMES = {"once": 1, "always": 1000}


class Faulty:
    """A `Step` with a fault."""

    def __init__(self, step: Any, name: str) -> None:
        self.step = step
        self.killed = name.startswith("killed")
        self.bad = next((times for word, times in TIMES.items() if name.startswith(word)), 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, update: int, factor: float, batches: Sequence[Any], **more: Any) -> Any:
        if self.killed and update == CUT:
            self.step.comm.all_reduce = lambda wire: os.kill(os.getpid(), signal.SIGKILL)
        if self.bad and update == BAD and self.step.comm.rank == BAD_RANK:
            self.bad -= 1
            batches = infinite(batches)
        return self.step(update, factor, batches, **more)

    def unsound(self, batches: Sequence[Any]) -> Any:
        spoilt = self.bad and self.step.comm.rank == BAD_RANK
        return self.step.unsound(infinite(batches) if spoilt else batches)


def infinite(batches: Sequence[Any]) -> list[Any]:
    """The gradients of the first batch are infinite."""
    target = np.full_like(batches[0].target, np.inf)
    return [dataclasses.replace(batches[0], target=target), *batches[1:]]


def break_steps() -> None:
    """Every run after this has a faulty step."""
    from mindbooth.trainer import loop

    build = loop._step
    loop._step = lambda run, *rest: Faulty(build(run, *rest), run.output.name)  # type: ignore


if __name__ == "__main__":
    runs = [[*sys.argv[2:], *argv] for argv in json.loads(Path(sys.argv[1]).read_text())]
    several.trainer.keep_torch_out()
    if "MS_ROLE" in os.environ:
        sys.exit(several.together(runs, prepare=break_steps))
    sys.exit(several.alone(runs, prepare=break_steps))
