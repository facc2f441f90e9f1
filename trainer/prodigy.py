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

from .optimizer import Optimizer, Segment

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
        self.decouple = decouple
        self.use_bias_correction = use_bias_correction
        self.safeguard_warmup = safeguard_warmup
        zeros = np.zeros(master.shape)
        self.m = self.new("prodigy_m", zeros)
        self.v = self.new("prodigy_v", zeros)
        self.s = self.new("prodigy_s", zeros)
        self.p0 = self.new("prodigy_p0", master.asnumpy())
        # d, the numerator, and the bias corrections 1 - beta^k of m and of v.
        self.scalars = self.new("prodigy_scalars", np.array([D0, 0, 0, 0]))

    def knobs(self, *, update: int, factor: float, scale: float) -> Tensor:
        """1 / scale, and the rate."""
        return Tensor(np.array([1 / scale, factor * self.segments[0].rate], np.float32))

    def construct(self, wire: Tensor, knobs: Tensor) -> Tensor:
        """Returns (5,) fp32: what AdamW returns, and d."""
        g, sound, figures = self.read(wire, knobs[0])
        rate = knobs[1]
        d, numerator, correction1, correction2 = (self.scalars[i] for i in range(4))
        # 1 - beta^k from the one before it: in fp32, the power itself would lose most digits.
        correction1 = correction1 + (1 - self.beta1) * (1 - correction1)
        correction2 = correction2 + (1 - self.beta2) * (1 - correction2)
        step_size = d * rate
        if self.use_bias_correction:
            step_size = step_size * ops.sqrt(correction2) / correction1
        if not self.decouple:
            g = self.by_segment(
                lambda i, at: g[at] + self.segments[i].weight_decay * self.master[at]
            )
        m = self.beta1 * self.m + (1 - self.beta1) * d * g
        v = self.beta2 * self.v + (1 - self.beta2) * d * d * ops.square(g)
        s = self.beta3 * self.s + d / D0 * (d if self.safeguard_warmup else step_size) * g
        ahead = ops.sum(g * (self.p0 - self.master))
        numerator = self.beta3 * numerator + d / D0 * step_size * ahead
        denominator = ops.sum(ops.abs(s))
        new_d = ops.maximum(d, numerator / denominator)

        step = step_size * m / (ops.sqrt(v) + new_d * self.epsilon)
        master = self.master
        if self.decouple:
            master = self.by_segment(
                lambda i, at: (
                    self.master[at] - self.segments[i].weight_decay * step_size * self.master[at]
                )
            )
        # Nothing moves either before the first gradient that is not 0, or where the rate is 0.
        moves = ops.logical_and(sound, ops.logical_and(denominator > 0, rate > 0))
        scalars = ops.stack((new_d, numerator, correction1, correction2))
        self.write(moves, master=master - step, m=m, v=v, s=s, scalars=scalars)
        return ops.concat((figures, self.scalars[:1]))
