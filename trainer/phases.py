"""The phases of a run: how long each takes, and what memory it leaves behind and needs at its most.

`loop.py` times each phase with `with phases("name"):`; the table is for --profile and --debug, the
trace has a span of each, and the heartbeat tells the launcher each phase as it begins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .heartbeat import Heart
from .memory import Meter
from .trace import Trace


@dataclass
class Phase:
    """What is known of one phase. resident, peak: bytes by meter, at the end and at the most."""

    times: int = 0
    seconds: float = 0.0
    resident: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)


class Phases:
    """One phase at a time, by name, in the order of their first use; a phase may come again.

    trace: of the phases, and of what those who look closer put into it.
    """

    def __init__(
        self,
        meters: Sequence[Meter] = (),
        heart: Heart | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.phases: dict[str, Phase] = {}
        self.trace = trace or Trace()
        self._meters = meters
        self._heart = heart or Heart()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measures what is inside the `with`."""
        self._heart.phase(name)
        for meter in self._meters:
            meter.reset()
        began = time.perf_counter()
        try:
            with self.trace.span(name):
                yield
        finally:
            phase = self.phases.setdefault(name, Phase())
            phase.seconds += time.perf_counter() - began
            phase.times += 1
            for meter in self._meters:
                resident, peak = meter.read()
                phase.resident[meter.name] = resident
                phase.peak[meter.name] = max(peak, phase.peak.get(meter.name, 0))

    def table(self) -> str:
        """A line a phase, and below them the trace's table of what updates are made of.

        Memory in GB: at the phase's end, and the most that it needed.
        """
        columns = [
            (f"{meter.name} {which}", meter.name, which)
            for meter in self._meters
            for which in ("end", "peak" if meter.resets else "peak so far")
        ]
        heads = "".join(f"{head + ' GB':>{len(head) + 5}}" for head, _, _ in columns)
        lines = [f"{'phase':<22}{'times':>7}{'seconds':>10}{'each':>10}{heads}"]
        for name, phase in self.phases.items():
            line = f"{name:<22}{phase.times:>7}{phase.seconds:>10.2f}"
            line += f"{phase.seconds / phase.times:>10.3f}"
            for head, meter, which in columns:
                size = (phase.resident if which == "end" else phase.peak)[meter]
                line += f"{size / 1e9:>{len(head) + 5}.2f}"
            lines.append(line)
        inside = self.trace.table()
        return "\n".join([*lines, inside] if inside else lines)
