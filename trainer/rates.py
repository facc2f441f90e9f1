"""The learning rate of each update. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)


def schedule(name: str, *, rate: float, warmup: int, updates: int, cycles: int = 1,
             power: float = 1.0) -> Callable[[int], float]:  # fmt: skip
    """The learning rate of update u (0-based), as diffusers.optimization.get_scheduler has it.

    warmup, updates: counted in updates, whatever the number of cards. cycles: hard restarts of
    "cosine_with_restarts". power: of "polynomial", which ends at 1e-7. As there, "constant" takes
    no notice of the warm-up.
    """
    assert name in SCHEDULES
    end = 1e-7

    def at(u: int) -> float:
        if name == "constant":
            return rate
        if u < warmup:
            return rate * u / max(1, warmup)
        if name == "constant_with_warmup":
            return rate
        done = (u - warmup) / max(1, updates - warmup)
        if done >= 1:
            return end if name == "polynomial" else 0.0
        if name == "linear":
            return rate * (1 - done)
        if name == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * done))
        if name == "cosine_with_restarts":
            return rate * 0.5 * (1 + math.cos(math.pi * (cycles * done % 1.0)))
        return (rate - end) * (1 - done) ** power + end

    return at
