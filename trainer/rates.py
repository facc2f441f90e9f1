"""The schedule: by how much each update's learning rates are multiplied. Pure."""

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
    """The factor of update u (0-based), in 0..1, as diffusers.optimization.get_scheduler has it.

    rate: the base learning rate, which only "polynomial" asks for: it ends where 1e-7 would be.
    warmup, updates: counted in updates, whatever the number of cards. cycles: hard restarts of
    "cosine_with_restarts". power: of "polynomial". As there, "constant" takes no notice of the
    warm-up.
    """
    assert name in SCHEDULES
    end = 1e-7 / max(rate, 1e-7) if name == "polynomial" else 0.0

    def at(u: int) -> float:
        if name == "constant":
            return 1.0
        if u < warmup:
            return u / max(1, warmup)
        if name == "constant_with_warmup":
            return 1.0
        done = (u - warmup) / max(1, updates - warmup)
        if done >= 1:
            return end
        if name == "linear":
            return 1 - done
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if name == "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * (cycles * done % 1.0)))
        return (1 - end) * (1 - done) ** power + end

    return at
