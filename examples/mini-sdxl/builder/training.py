"""What the three trainings of the builder share: learning rate, moving average, progress lines."""

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn


def learning_rates(steps: int, *, peak: float, warmup: int) -> Iterator[float]:
    """Linear warm-up, then a cosine that ends at 2 % of the peak."""
    for step in range(steps):
        rise = min(1.0, (step + 1) / warmup)
        yield peak * rise * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


class Average:
    """Exponential moving average of parameters, shorter at first: the start is soon forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float, warmup: int) -> None:
        self._parameters = list(parameters)
        self._values = [p.detach().clone() for p in self._parameters]
        self._decay, self._warmup, self._step = decay, warmup, 0

    def update(self) -> None:
        self._step += 1
        decay = min(self._decay, (self._step + 1) / (self._step + self._warmup))
        live = [p.detach() for p in self._parameters]
        torch._foreach_lerp_(self._values, live, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages in the parameters' place, at the end of a training."""
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.copy_(value)


def update(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[nn.Parameter]
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


class Progress:
    """Prints the mean loss every EVERY steps, and at the last."""

    def __init__(self, name: str, steps: int, *, every: int = 100) -> None:
        self._name, self._steps, self._every = name, steps, every
        self._losses: list[float] = []
        self._done, self._start = 0, time.monotonic()

    def add(self, loss: float) -> None:
        self._losses.append(loss)
        self._done += 1
        if self._done % self._every == 0 or self._done == self._steps:
            minutes = (time.monotonic() - self._start) / 60
            mean = sum(self._losses) / len(self._losses)
            print(
                f"{self._name} {self._done}/{self._steps}  loss {mean:.4f}  {minutes:.1f} min",
                flush=True,
            )
            self._losses.clear()
