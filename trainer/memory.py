"""How much memory this process takes, on the host and on the device.

A meter tells what is resident now, and the most that was since its last `reset()`. Linux keeps the
host's peak for a process; where it does not let it be reset, the peak is that since the start, and
`resets` says so. On the CPU target, tensors are part of the host's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import mindspore as ms
from mindspore import nn

from . import sdxl

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): "reset the peak resident set size"


class Meter(Protocol):
    """What memory of one kind is in use, in bytes."""

    name: str
    resets: bool

    def reset(self) -> None:
        """The peak is counted from here."""

    def read(self) -> tuple[int, int]:
        """(resident now, peak)."""


class Host:
    """Resident memory of this process."""

    name = "host"

    def __init__(self) -> None:
        self.resets = True

    def reset(self) -> None:
        try:
            CLEAR.write_text(RESET_PEAK)
        except OSError:  # not in every container
            self.resets = False

    def read(self) -> tuple[int, int]:
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", STATUS.read_text(), re.MULTILINE))
        return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


class Device:
    """Memory of tensors on the NPU."""

    name = "device"
    resets = True

    def reset(self) -> None:
        ms.runtime.reset_peak_memory_stats()

    def read(self) -> tuple[int, int]:
        return ms.runtime.memory_allocated(), ms.runtime.max_memory_allocated()


def meters() -> tuple[Meter, ...]:
    """What there is to be told on the device target in use."""
    return (Host(), Device()) if ms.get_context("device_target") == "Ascend" else (Host(),)


def weights(model: nn.Cell) -> dict[str, int]:
    """Bytes of a model's frozen parameters, by the name of their dtype."""
    found: dict[str, int] = {}
    for parameter in model.get_parameters():
        if not parameter.requires_grad:
            name = sdxl.NAMES.get(parameter.dtype, str(parameter.dtype))
            found[name] = found.get(name, 0) + parameter.nbytes
    return found


def shown(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
