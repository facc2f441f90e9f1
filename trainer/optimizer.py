"""What the optimizers share on one flat vector, and AdamW. Prodigy is in prodigy.py.

An optimizer is a cell: it takes the summed gradients as they come off the wire and does all the
rest of an update in a few operators over the whole vector: unscale, judge, clip, moments. It
changes nothing itself, so it can be compiled without taking parameters into its graph: the master
and the state go in and come out, and `advance` keeps what came out. Nothing is read on the host;
knobs go in, and a handful of figures comes out.

Method: decoupled weight decay, https://arxiv.org/abs/1711.05101, with the bias correction of
https://arxiv.org/abs/1412.6980, in the order of operations of torch.optim.AdamW. (MindSpore's
nn.AdamWeightDecay has no bias correction: its first updates are up to three times as large.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from . import device


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of the flat vector, from where the one before it stops, that is trained alike.

    rate: the learning rate before the schedule's factor. weight_decay: relative to the rate.
    """

    stop: int
    rate: float
    weight_decay: float


class Optimizer(nn.Cell):
    """An optimizer of `master` (P,), fp32: `advance` takes the reduced wire and `knobs()`.

    wire (P + 2,): gradients, loss, stop request. Where an element of it reached `limit` or is no
    number, it overflowed, and the values come out as they went in. max_grad_norm: for the norm over
    all segments.
    """

    STATE: tuple[str, ...]  # what a checkpoint keeps beside the master, in the order of construct's

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
        self.sizes = tuple(end - begin for begin, end in self.spans)
        self.beta1, self.beta2 = betas
        self.rest1, self.rest2 = 1 - self.beta1, 1 - self.beta2  # a graph would take this in fp32
        self.epsilon = epsilon
        self.max_grad_norm = max_grad_norm
        self.limit = limit
        self._state: dict[str, Tensor] = {}
        self.load(dict.fromkeys(self.STATE, np.zeros(master.shape)))

    def knobs(self, *, update: int, factor: float, scale: float) -> Tensor:
        """What changes from update to update (0-based), as one input on the device.

        factor: the schedule's, by which every segment's rate is multiplied. scale: the loss scale.
        """
        raise NotImplementedError

    def advance(self, wire: Tensor, knobs: Tensor, *, mode: str) -> Tensor:
        """The update itself, compiled or not; returns the figures."""
        before = (self._state[name] for name in self.STATE)
        with device.mode(mode):
            figures, master, *state = self(wire, knobs, self.master, *before)
        ops.assign(self.master, master)  # in its place: the adapter may have views of it
        self._state = dict(zip(self.STATE, state, strict=True))
        return figures

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps beside the master, on the host."""
        # Copies: on a CPU, asnumpy() may share memory that the next update writes to.
        return {name: value.asnumpy().copy() for name, value in self._state.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `state()` gave."""
        self._state = {name: Tensor(np.asarray(state[name], np.float32)) for name in self.STATE}

    def read(self, wire: Tensor, unscale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients (P,), unscaled and clipped; whether all is sound; the figures.

        figures (4,): loss, gradient norm before clipping, 1 if sound, stops asked for.
        """
        wire = ops.cast(wire, ms.float32)
        sound = ops.all(ops.less(ops.abs(wire), self.limit))
        g, loss, stops = mint.split(wire, (self.spans[-1][1], 1, 1))
        g = g * unscale
        norm = ops.sqrt(ops.sum(ops.square(g)))
        g = g * ops.minimum(self.max_grad_norm / (norm + 1e-6), ops.ones_like(norm))
        applied = ops.cast(sound, ms.float32)
        figures = ops.concat((loss, norm.reshape(1), applied.reshape(1), stops))
        return g, sound, figures

    def parts(self, vector: Tensor) -> tuple[Tensor, ...]:
        """That of each segment: so a segment's constants need no vectors of their own."""
        return (vector,) if len(self.spans) == 1 else mint.split(vector, self.sizes)

    def kept(self, when: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple:
        """The new values where `when` is true, else the old ones."""
        chosen: tuple[Tensor, ...] = ()
        for one, other in zip(new, old):  # noqa: B905 (graphs know no strict)
            chosen += (mint.where(when, one, other),)
        return chosen


def joined(parts: tuple[Tensor, ...]) -> Tensor:
    """(P,), of one part for each segment."""
    return parts[0] if len(parts) == 1 else ops.concat(parts)


class AdamW(Optimizer):
    """torch.optim.AdamW, with a parameter group a segment. The moments m and v are fp32."""

    STATE = ("m", "v")

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

    def construct(self, wire: Tensor, knobs: Tensor, master: Tensor, m: Tensor, v: Tensor) -> tuple:
        """Returns (4,) fp32: loss, gradient norm before clipping, 1 if applied, stops asked for;
        and the values."""
        g, sound, figures = self.read(wire, knobs[0])
        new_m = self.beta1 * m + self.rest1 * g
        new_v = self.beta2 * v + self.rest2 * ops.square(g)
        step = new_m / (ops.sqrt(new_v) / knobs[1] + self.epsilon)
        parts: tuple[Tensor, ...] = ()
        masters, steps = self.parts(master), self.parts(step)
        for i in range(len(self.spans)):
            parts += (knobs[2 + 2 * i] * masters[i] - knobs[3 + 2 * i] * steps[i],)
        found = self.kept(sound, (joined(parts), new_m, new_v), (master, m, v))
        return (figures,) + found  # noqa: RUF005 (a graph)
