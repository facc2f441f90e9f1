"""The fused step: one update from this worker's micro-batches, with one all-reduce.

    micro-batch -> Forward -> gradients and loss, in fp32             } once a micro-batch
    + + +
    Pack: + stop request, / (world size * accumulation), cast -> wire }
    Comm.all_reduce(wire)                                             } once an update
    optimizer: unscale, judge, clip, the new master                   }

The loss is always scaled, in fp32 training too: small gradients would vanish in the fp16 wire.
The verdict is taken after the all-reduce, so every rank has the same one. An update that
overflowed changes nothing on any rank; the caller repeats it with the same samples, at half scale.
In graph mode Forward, Pack and the optimizer are a graph each.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindbooth.data.batches import Batch

from . import device
from .device import Comm
from .ema import Ema
from .lora import Adapter, join
from .optimizer import Optimizer
from .trace import Trace

WIRE = {"fp16": ms.float16, "fp32": ms.float32}
LIMIT = {"fp16": 65504.0, "fp32": 3.0e38}  # chips that saturate stop at the greatest number


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one update came to, the same on every rank.

    loss: mean over all samples of the update, rounded to the wire's precision. grad_norm: L2,
    before clipping. applied: False where gradients overflowed. stop: some rank was asked to stop.
    scale: the loss scale that was used. step_size: d of Prodigy, else None.
    """

    loss: float
    grad_norm: float
    applied: bool
    stop: bool
    scale: float
    step_size: float | None = None


class Forward(nn.Cell):
    """The gradients of scale * loss, fp32, joined by the adapter's blocks, and the loss (1,).

    dtype: what the models compute in; the loss is taken in fp32. A batch's `text` is the prompts'
    embeddings, or the tokens for text encoders in training.
    """

    def __init__(self, adapter: Adapter, dtype: ms.Type) -> None:
        super().__init__()
        self.unet = adapter.models["unet"]
        self.text = _Encoded() if "text_encoder" not in adapter.models else Encode(adapter.models)
        self.dtype = dtype
        self.counts = tuple(count for count, _ in adapter.blocks)
        self.gradients = ops.value_and_grad(
            self._loss, None, weights=list(adapter.parameters), has_aux=True
        )

    def _loss(self, noisy, timesteps, target, weight, time_ids, scale, *text):
        prompt_embeds, pooled = self.text(*text)
        # The sizes stay in fp32: above 2048 they are no longer exact in fp16.
        conditions = {"text_embeds": ops.cast(pooled, self.dtype), "time_ids": time_ids}
        predicted = self.unet(
            ops.cast(noisy, self.dtype),
            timesteps,
            ops.cast(prompt_embeds, self.dtype),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        error = ops.square(ops.cast(predicted, ms.float32) - target)
        loss = ops.mean(ops.mean(error, (1, 2, 3)) * weight)
        return loss * scale, loss

    def construct(self, noisy, timesteps, target, weight, time_ids, scale, *text):
        (_, loss), gradients = self.gradients(
            noisy, timesteps, target, weight, time_ids, scale, *text
        )
        return (*join(gradients, self.counts), loss.reshape(1))


class _Encoded(nn.Cell):
    def construct(self, prompt_embeds, pooled):
        return prompt_embeds, pooled


class Encode(nn.Cell):
    """Both tokenizers' ids (R, L) -> prompt embeddings (R, L, D1 + D2) and pooled ones (R, P).

    As `sdxl.TextEncoders.encode`, inside the graph. keep (R,): 0 makes a row all zeros.
    """

    def __init__(self, models: Mapping[str, nn.Cell]) -> None:
        super().__init__()
        self.first, self.second = models["text_encoder"], models["text_encoder_2"]

    def construct(self, ids_1, ids_2, keep):
        first = self.first(ids_1, output_hidden_states=True, return_dict=False)
        second = self.second(ids_2, output_hidden_states=True, return_dict=False)
        embeds = ops.concat((first[-1][-2], second[-1][-2]), -1)
        keep = ops.cast(keep, embeds.dtype)
        return embeds * keep.reshape(-1, 1, 1), second[0] * keep.reshape(-1, 1)


class Pack(nn.Cell):
    """The (P + 2,) wire: what `Forward` gives, summed over the micro-batches, and stop (1,).

    share: 1 / (world size * accumulation), which makes sums means; a stop counts whole.
    """

    def __init__(self, share: float, dtype: ms.Type) -> None:
        super().__init__()
        self.share = share
        self.dtype = dtype

    def construct(self, stop, *total):
        # Cast before they are joined: half as much to copy.
        wire: tuple[Tensor, ...] = ()
        for part in total:
            wire += (ops.cast(part.reshape(-1) * self.share, self.dtype),)
        return ops.concat((*wire, ops.cast(stop, self.dtype)))


class LossScale:
    """The dynamic loss scale: halved by an overflow, doubled after `interval` sound updates."""

    def __init__(self, value: float = 65536.0, *, interval: int = 1000, most: float = 2.0**24):
        self.value = value
        self.sound = 0
        self.interval = interval
        self.most = most

    def learn(self, applied: bool) -> None:
        if not applied:
            self.value /= 2
            self.sound = 0
            return
        self.sound += 1
        if self.sound >= self.interval and self.value < self.most:
            self.value *= 2
            self.sound = 0


class Step:
    """Callable: update number, the rates' factor and micro-batches in; adapter changed, Result out.

    average: of the adapter, brought up to date too, where one is kept.
    """

    def __init__(self, adapter: Adapter, optimizer: Optimizer, comm: Comm, *, accumulation: int,
                 dtype: ms.Type, wire: str, mode: str, scale: LossScale,
                 average: Ema | None = None, trace: Trace | None = None) -> None:  # fmt: skip
        self.forward = Forward(adapter, dtype)
        self.pack = Pack(1.0 / (comm.size * accumulation), WIRE[wire])
        self.adapter = adapter
        self.optimizer = optimizer
        self.comm = comm
        self.mode = mode
        self.scale = scale
        self.average = average
        self.trace = trace or Trace()

    def prepare(self, batch: Batch) -> None:
        """Compiles forward and backward for batches of this size, by one that changes nothing."""
        with device.mode(self.mode):
            self.forward(*inputs(batch, Tensor(1.0, ms.float32)))[-1].asnumpy()

    def prepare_update(self) -> None:
        """Compiles the rest, by an update that overflowed, which changes nothing."""
        shapes = [*(shape for _, shape in self.adapter.blocks), (1,)]
        total = [Tensor(np.full(shape, np.inf, np.float32)) for shape in shapes]
        with device.mode(self.mode):
            wire = self.pack(Tensor(np.zeros(1, np.float32)), *total)
        knobs = self.optimizer.knobs(update=0, factor=1.0, scale=1.0)
        self.optimizer.advance(wire, knobs, mode=self.mode).asnumpy()
        self.adapter.prove()

    def __call__(
        self, update: int, factor: float, batches: Sequence[Batch], *, stop: bool
    ) -> Result:
        scale, span = self.scale.value, self.trace.span
        scale_input = Tensor(scale, ms.float32)
        total: tuple[Tensor, ...] = ()
        for batch in batches:
            with span("forward, backward", update):
                with device.mode(self.mode):
                    parts = self.forward(*inputs(batch, scale_input))
                total = tuple(map(operator.add, total, parts)) if total else parts
        with span("pack", update), device.mode(self.mode):
            wire = self.pack(Tensor(np.array([float(stop)], np.float32)), *total)
        with span("all-reduce", update):
            wire = self.comm.all_reduce(wire)
        with span("optimizer", update):
            knobs = self.optimizer.knobs(update=update, factor=factor, scale=scale)
            figures = self.optimizer.advance(wire, knobs, mode=self.mode)
            # The only place where the host waits for the device.
            loss, norm, applied, stops, *more = figures.asnumpy().tolist()
        with span("write layers", update):
            self.adapter.written()
        if self.average and applied:
            with span("average", update):
                self.average.update(update + 1)
        self.scale.learn(applied > 0)
        return Result(
            loss=loss,
            grad_norm=norm,
            applied=applied > 0,
            stop=stops > 0 or np.isnan(stops),
            scale=scale,
            step_size=more[0] if more else None,
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """The adapter's tensors by name, as they are to be used: the average, if one is kept."""
        return self.adapter.arrays(self.average.state()["average"] if self.average else None)

    def unsound(self, batches: Sequence[Batch]) -> tuple[int, ...]:
        """The samples of this rank's micro-batches that have no finite gradients by themselves."""
        found: tuple[int, ...] = ()
        for batch in batches:
            with device.mode(self.mode):
                parts = self.forward(*inputs(batch, Tensor(1.0, ms.float32)))
            if not all(np.isfinite(part.asnumpy()).all() for part in parts):
                found += batch.samples
        return found


def inputs(batch: Batch, scale: Tensor) -> list[Tensor]:
    """A batch as `Forward` takes it."""
    fields = ("noisy", "timesteps", "target", "weight", "time_ids")
    given = [Tensor(getattr(batch, name)) for name in fields]
    return [*given, scale, *(Tensor(array) for array in batch.text)]
