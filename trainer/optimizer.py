"""What the optimizers share on one flat vector, and AdamW. Prodigy is in prodigy.py.

An optimizer is a cell: it takes the summed gradients as they come off the wire and does all the
rest of an update in a few operators over the whole vector: unscale, judge, clip, moments, write.
Nothing is read on the host; knobs go in, and a handful of figures comes out.

Method: decoupled weight decay, https://arxiv.org/abs/1711.05101, with the bias correction of
https://arxiv.org/abs/1412.6980, in the order of operations of torch.optim.AdamW. (MindSpore's
nn.AdamWeightDecay has no bias correction: its first updates are up to three times as large.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of the flat vector, from where the one before it stops, that is trained alike.

    rate: the learning rate before the schedule's factor. weight_decay: relative to the rate.
    """

    stop: int
    rate: float
    weight_decay: float


class Optimizer(nn.Cell):
    """An optimizer of `master` (P,), fp32: called with the reduced wire and `knobs()`.

    wire (P + 2,): gradients, loss, stop request. Nothing is changed where an element of it reached
    `limit` or is no number: it overflowed. max_grad_norm: for the norm over all segments.
    """

    STATE: tuple[str, ...]  # the names of the parameters that a checkpoint keeps, but the master

    def __init__(self, master: Parameter, *, segments: Sequence[Segment],
                 betas: tuple[float, float], epsilon: float, max_grad_norm: float,
                 limit: float) -> None:  # fmt: skip
        super().__init__()
        stops = [segment.stop for segment in segments]
        assert stops == sorted(set(stops))
        assert stops[-1] == master.size
        self.master = master
        self.segments = tuple(segments)
        self.spans = tuple(zip([0, *stops[:-1]], stops, strict=True))
        self.beta1, self.beta2 = betas
        self.epsilon = epsilon
        self.max_grad_norm = max_grad_norm
        self.limit = limit

    def knobs(self, *, update: int, factor: float, scale: float) -> Tensor:
        """What changes from update to update (0-based), as one input on the device.

        factor: the schedule's, by which every segment's rate is multiplied. scale: the loss scale.
        """
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps beside the master, on the host."""
        # Copies: on a CPU, asnumpy() may share memory that the next update writes to.
        return {name: getattr(self, name).asnumpy().copy() for name in self.STATE}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `state()` gave."""
        for name in self.STATE:
            ops.assign(getattr(self, name), Tensor(state[name]))

    def new(self, name: str, values: np.ndarray) -> Parameter:
        """A part of the state."""
        return Parameter(Tensor(values.astype(np.float32)), name=name, requires_grad=False)

    def read(self, wire: Tensor, unscale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients (P,), unscaled and clipped; whether all is sound; the figures.

        figures (4,): loss, gradient norm before clipping, 1 if sound, stops asked for.
        """
        wire = ops.cast(wire, ms.float32)
        sound = ops.all(ops.less(ops.abs(wire), self.limit))
        size = self.master.size
        g = wire[:size] * unscale
        norm = ops.sqrt(ops.sum(ops.square(g)))
        g = g * ops.minimum(self.max_grad_norm / (norm + 1e-6), ops.ones_like(norm))
        figures = ops.stack((wire[size], norm, ops.cast(sound, ms.float32), wire[size + 1]))
        return g, sound, figures

    def by_segment(self, part: Callable[[int, slice], Tensor]) -> Tensor:
        """(P,): what `part` gives for each segment, from its number and its place in the vector.

        So a segment's constants stay single numbers, and need no vectors of their own.
        """
        parts = [part(i, slice(*span)) for i, span in enumerate(self.spans)]
        return parts[0] if len(parts) == 1 else ops.concat(parts)

    def write(self, when: Tensor, **values: Tensor) -> None:
        """Writes parameters by name, where `when` is true; otherwise they keep what they have."""
        for name, value in values.items():
            parameter = getattr(self, name)
            # ops.assign alone is seen through the adapter's views of the master.
            ops.assign(parameter, mint.where(when, value, parameter))


class AdamW(Optimizer):
    """torch.optim.AdamW, with a parameter group a segment. The moments m and v are fp32."""

    STATE = ("m", "v")

    def __init__(self, master: Parameter, *, segments: Sequence[Segment],
                 betas: tuple[float, float], epsilon: float, max_grad_norm: float,
                 limit: float) -> None:  # fmt: skip
        super().__init__(master, segments=segments, betas=betas, epsilon=epsilon,
                         max_grad_norm=max_grad_norm, limit=limit)  # fmt: skip
        zeros = np.zeros(master.shape)
        self.m = self.new("adamw_m", zeros)
        self.v = self.new("adamw_v", zeros)

    def knobs(self, *, update: int, factor: float, scale: float) -> Tensor:
        """1 / scale, the second moment's correction, and of each segment: decay, step size.

        Rounded to fp32 once, here: what is rounded twice in the same direction in every update
        drifts away from torch.
        """
        t = update + 1
        found = [1 / scale, math.sqrt(1 - self.beta2**t)]
        for segment in self.segments:
            rate = factor * segment.rate
            found += [1 - rate * segment.weight_decay, rate / (1 - self.beta1**t)]
        return Tensor(np.array(found, np.float32))

    def construct(self, wire: Tensor, knobs: Tensor) -> Tensor:
        """Returns (4,) fp32: loss, gradient norm before clipping, 1 if applied, stops asked for."""
        g, sound, figures = self.read(wire, knobs[0])
        m = self.beta1 * self.m + (1 - self.beta1) * g
        v = self.beta2 * self.v + (1 - self.beta2) * ops.square(g)
        step = m / (ops.sqrt(v) / knobs[1] + self.epsilon)
        master = self.by_segment(
            lambda i, at: knobs[2 + 2 * i] * self.master[at] - knobs[3 + 2 * i] * step[at]
        )
        self.write(sound, master=master, m=m, v=v)
        return figures
