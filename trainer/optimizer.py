"""AdamW on one flat vector.

`AdamW` is a cell: it takes the summed gradients as they come off the wire and does all the rest of
an update in a few operators over the whole vector: unscale, judge, clip, moments, write.

Method: decoupled weight decay, https://arxiv.org/abs/1711.05101, with the bias correction of
https://arxiv.org/abs/1412.6980, in the order of operations of torch.optim.AdamW. (MindSpore's
nn.AdamWeightDecay has no bias correction: its first updates are up to three times as large.)
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops


class AdamW(nn.Cell):
    """One update of `master` (P,) from the reduced wire (P + 2,): gradients, loss, stop request.

    Nothing is changed where an element of the wire reached `limit` or is no number: it overflowed.
    The moments `m` and `v` are fp32, as the master is.
    """

    def __init__(self, master: Parameter, *, betas: tuple[float, float], epsilon: float,
                 weight_decay: float, max_grad_norm: float, limit: float) -> None:  # fmt: skip
        super().__init__()
        self.master = master
        zeros = np.zeros(master.shape, np.float32)
        self.m = Parameter(Tensor(zeros), name="adamw_m", requires_grad=False)
        self.v = Parameter(Tensor(zeros.copy()), name="adamw_v", requires_grad=False)
        self.size = master.size
        self.beta1, self.beta2 = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.limit = limit

    def knobs(self, *, update: int, rate: float, scale: float) -> Tensor:
        """What changes from update to update (0-based), as an input of the graph: (4,) fp32."""
        t = update + 1
        corrections = 1 - self.beta1**t, math.sqrt(1 - self.beta2**t)
        return Tensor(np.array([1 / scale, rate, *corrections], np.float32))

    def moments(self) -> dict[str, np.ndarray]:
        """m and v on the host, (P,) fp32 each."""
        return {"m": self.m.asnumpy(), "v": self.v.asnumpy()}

    def load(self, m: np.ndarray, v: np.ndarray) -> None:
        """Replaces the moments."""
        ops.assign(self.m, Tensor(m))
        ops.assign(self.v, Tensor(v))

    def construct(self, wire, knobs):
        """Returns (4,) fp32: loss, gradient norm before clipping, 1 if applied, stops asked for."""
        unscale, rate, correction1, correction2 = knobs[0], knobs[1], knobs[2], knobs[3]
        wire = ops.cast(wire, ms.float32)
        sound = ops.all(ops.less(ops.abs(wire), self.limit))
        g = wire[: self.size] * unscale
        norm = ops.sqrt(ops.sum(ops.square(g)))
        g = g * ops.minimum(self.max_grad_norm / (norm + 1e-6), ops.ones_like(norm))
        m = self.beta1 * self.m + (1 - self.beta1) * g
        v = self.beta2 * self.v + (1 - self.beta2) * ops.square(g)
        step = m / correction1 / (ops.sqrt(v) / correction2 + self.epsilon)
        new = self.master * (1 - rate * self.weight_decay) - rate * step
        new = mint.where(sound, new, self.master)
        m = mint.where(sound, m, self.m)
        v = mint.where(sound, v, self.v)
        ops.assign(self.master, new)
        ops.assign(self.m, m)
        ops.assign(self.v, v)
        return ops.stack((wire[self.size], norm, ops.cast(sound, ms.float32), wire[self.size + 1]))
