"""What an NPU did in a few updates, which --profile has MindSpore's profiler record.

each update -> DeviceProfile.step() -> OUTPUT/profile/ascend/
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SKIPPED, RECORDED = 2, 3  # updates; the profiler warms up in the last skipped one


class DeviceProfile:
    """No profiler: on a CPU, the spans are what there is."""

    def step(self) -> None:
        """An update is done."""

    def end(self) -> None:
        """No more updates come."""


@contextlib.contextmanager
def device_profile(target: str, folder: Path) -> Iterator[DeviceProfile]:
    """MindSpore's profiler over the updates inside, where `target` is "Ascend".

    RECORDED updates after the first SKIPPED ones are recorded into a folder in `folder`. A profiler
    that fails is given up with a warning, and training goes on.
    """
    profile = _MindSpore(folder) if target == "Ascend" else DeviceProfile()
    try:
        yield profile
    finally:
        profile.end()


class _MindSpore(DeviceProfile):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = 0
        self._profile: Any = None
        with self._tried():
            self._profile = _start(folder)

    def step(self) -> None:
        if self._profile is None:
            return
        with self._tried():
            self._profile.step()
            self._done += 1
        if self._done == SKIPPED + RECORDED:
            self.end()

    def end(self) -> None:
        if self._profile is None:
            return
        with self._tried():
            self._profile.stop()
            self._tell()
        self._profile = None

    def _tell(self) -> None:
        recorded = self._done - SKIPPED
        if recorded <= 0:
            log.warning("MindSpore's profiler begins after %d updates, and no more came.", SKIPPED)
            return
        # Not done here: it takes minutes, and processes of its own, while other ranks wait.
        log.info(
            "MindSpore's profiler recorded %d updates: %s. To analyse them, with CANN: python -c "
            "\"from mindspore.profiler.profiler import analyse; analyse('%s')\"",
            recorded, self._folder, self._folder,
        )  # fmt: skip

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except Exception as err:  # whatever it is: the figures are not worth a training
            self._profile = None
            log.warning("MindSpore's profiler is given up (%s): %s", self._folder, err)


def _start(folder: Path) -> Any:
    """MindSpore's profiler, waiting for its updates: each ends with a call of step()."""
    from mindspore import profiler

    return profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
        schedule=schedule(),
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder), analyse_flag=False),
    )


def schedule() -> Any:
    """What MindSpore's profiler does in which update, from 0: a function to ProfilerAction."""
    from mindspore import profiler

    return profiler.schedule(skip_first=SKIPPED - 1, wait=0, warmup=1, active=RECORDED, repeat=1)
