"""Prodigy on one flat vector: Adam that finds its own step size. The loop makes one if asked.

    d: the step size, estimated from below: how far the start was from a solution, at least
    d <- max(d, numerator / |s|_1)      it never shrinks; the learning rate is a factor on it

    numerator: decaying sum of (d / d0) d lr <g, p0 - p>      p0: where the run started
    s:         decaying sum of (d / d0) d lr g                m, v: Adam's moments of d g

All gradients of all segments share one d. It stays on the device, and so does everything that
depends on it: an update whose rate is 0 (the first of a warm-up) counts for nothing, not even for
the bias correction, so the host can't know how far that is.

Method: https://arxiv.org/abs/2306.06101, with the semantics of the PyPI package prodigyopt, for
d_coef 1 and unlimited growth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, ops

from .optimizer import Optimizer, Segment, joined

D0 = 1e-6  # the first d


class Prodigy(Optimizer):
    """Prodigy, with a parameter group a segment; all have one rate, each its own weight decay.

    beta3: the decay of numerator and s; None for the root of beta2. decouple: weight decay as in
    AdamW, else added to the gradient. safeguard_warmup: s without the rate, so that small rates at
    the start don't make d great.
    """

    STATE = ("m", "v", "s", "p0", "scalars")

    def __init__(self, master: Parameter, *, segments: Sequence[Segment],
                 betas: tuple[float, float], beta3: float | None, epsilon: float,
                 decouple: bool, use_bias_correction: bool, safeguard_warmup: bool,
                 max_grad_norm: float, limit: float) -> None:  # fmt: skip
        super().__init__(master, segments=segments, betas=betas, epsilon=epsilon,
                         max_grad_norm=max_grad_norm, limit=limit)  # fmt: skip
        assert len({segment.rate for segment in segments}) == 1
        self.beta3 = math.sqrt(self.beta2) if beta3 is None else beta3
        self.decays = tuple(segment.weight_decay for segment in segments)
        self.decouple = decouple
        self.use_bias_correction = use_bias_correction
        self.safeguard_warmup = safeguard_warmup
        # scalars: d, the numerator, and the bias corrections 1 - beta^k of m and of v.
        scalars = np.array([D0, 0, 0, 0])
        self.load({**self.state(), "p0": master.asnumpy().copy(), "scalars": scalars})

    def knobs(self, *, update: int, factor: float, scale: float) -> Tensor:
        """1 / scale, and the rate."""
        return Tensor(np.array([1 / scale, factor * self.segments[0].rate], np.float32))

    def construct(self, wire: Tensor, knobs: Tensor, master: Tensor, m: Tensor, v: Tensor,
                  s: Tensor, p0: Tensor, scalars: Tensor) -> tuple:  # fmt: skip
        """Returns (5,) fp32: what AdamW returns, and d; and the values."""
        g, sound, figures = self.read(wire, knobs[0])
        rate = knobs[1]
        d, numerator, correction1, correction2 = scalars[0], scalars[1], scalars[2], scalars[3]
        # 1 - beta^k from the one before it: in fp32, the power itself would lose most digits.
        correction1 = correction1 + self.rest1 * (1 - correction1)
        correction2 = correction2 + self.rest2 * (1 - correction2)
        step_size = d * rate
        if self.use_bias_correction:
            step_size = step_size * ops.sqrt(correction2) / correction1
        if not self.decouple:
            g = g + self.decay(master)
        new_m = self.beta1 * m + self.rest1 * d * g
        new_v = self.beta2 * v + self.rest2 * d * d * ops.square(g)
        new_s = self.beta3 * s + d / D0 * (d if self.safeguard_warmup else step_size) * g
        ahead = ops.sum(g * (p0 - master))
        numerator = self.beta3 * numerator + d / D0 * step_size * ahead
        denominator = ops.sum(ops.abs(new_s))
        new_d = ops.maximum(d, numerator / denominator)

        step = step_size * new_m / (ops.sqrt(new_v) + new_d * self.epsilon)
        new = master - step_size * self.decay(master) if self.decouple else master
        new = new - step
        # Nothing moves either before the first gradient that is not 0, or where the rate is 0.
        moves = ops.logical_and(sound, ops.logical_and(denominator > 0, rate > 0))
        scalars_then = ops.stack((new_d, numerator, correction1, correction2))
        new, m, v, s, scalars = self.kept(
            moves, (new, new_m, new_v, new_s, scalars_then), (master, m, v, s, scalars)
        )
        return ops.concat((figures, scalars[:1])), new, m, v, s, p0, scalars

    def decay(self, master: Tensor) -> Tensor:
        """Each segment times its weight decay."""
        parts: tuple[Tensor, ...] = ()
        masters = self.parts(master)
        for i in range(len(self.decays)):
            parts += (self.decays[i] * masters[i],)
        return joined(parts)
