"""A moving average of the adapter: smoother than its last values, so it is what is shown.

    average <- average - (1 - decay) (average - master)      after each update

`update()` is called by the loop after each applied update; exporting and the validation pictures
happen inside `with ema.shown():`. What must not happen there is an update, or a checkpoint: the
master is the average then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from mindspore import Parameter, Tensor, ops

from .lora import Adapter


class Ema:
    """The average of `adapter`, a flat fp32 vector as its master is.

    decay: reached slowly, so that the start, which is no result, is soon forgotten; as
    diffusers.training_utils.EMAModel has it.
    """

    def __init__(self, adapter: Adapter, decay: float) -> None:
        self.adapter = adapter
        self.decay = decay
        start = Tensor(adapter.master.asnumpy().copy())
        self.average = Parameter(start, name="adapter_average", requires_grad=False)

    def update(self, done: int) -> None:
        """Takes the master in, after `done` updates (from 1)."""
        share = 1 - decay_after(done, self.decay)
        ops.assign(self.average, self.average - share * (self.average - self.adapter.master))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the `with`, the adapter has the average's values; after it, its own again."""
        own = self.adapter.master.asnumpy().copy()  # on a CPU, asnumpy() may share memory
        self.adapter.load(self.average.asnumpy())
        try:
            yield
        finally:
            self.adapter.load(own)

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps, on the host."""
        return {"average": self.average.asnumpy().copy()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `state()` gave."""
        ops.assign(self.average, Tensor(state["average"]))


def decay_after(done: int, most: float) -> float:
    """The decay of the update that is the `done`-th; the first one forgets the start."""
    return min(most, done / (9 + done)) if done > 1 else 0.0
