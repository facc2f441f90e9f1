"""One update of our own, for its operators: `operators.py pynative` or `operators.py graph`.

PyNative: as a worker of a launch, for there is a collective in it; MindSpore's debug log (GLOG_v=0)
names each operator that is run. Graph: what of the step is compiled, no more; MindSpore saves the
graph. One layer stands in for each of mindone's models, to carry the LoRA; and cpu_ops stays out,
as it does on Ascend.
"""

import os
import sys
from collections.abc import Callable

os.environ["USE_TORCH"] = "0"  # transformers would load torch, if it is there

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops
from mindspore.communication import init

from mindbooth.data.batches import Batch
from mindbooth.trainer import lora
from mindbooth.trainer.device import Comm
from mindbooth.trainer.ema import Ema
from mindbooth.trainer.lora import Adapter
from mindbooth.trainer.optimizer import AdamW, Optimizer, Segment
from mindbooth.trainer.prodigy import Prodigy
from mindbooth.trainer.step import LossScale, Step

ROWS, WIDTH = 2, 4
BEGIN = "---- our own operators from here ----"


class Denoiser(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = mint.nn.Linear(WIDTH, WIDTH, dtype=ms.float16)

    def construct(self, noisy, timesteps, embeds, added_cond_kwargs, return_dict):
        return (self.to_q(noisy) + ops.mean(embeds) + ops.mean(added_cond_kwargs["text_embeds"]),)


class TextEncoder(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = mint.nn.Linear(1, WIDTH, dtype=ms.float16)

    def construct(self, ids, output_hidden_states, return_dict):
        states = self.q_proj(ops.cast(ids, ms.float16).reshape(ROWS, -1, 1))
        return states[:, 0], (states, states)


def models(with_text: bool) -> dict[str, nn.Cell]:
    found: dict[str, nn.Cell] = {"unet": Denoiser()}
    if with_text:
        found |= {"text_encoder": TextEncoder(), "text_encoder_2": TextEncoder()}
    for name, model in found.items():
        lora.inject(model, rank=2, targets=("to_q",) if name == "unet" else ("q_proj",))
    return found


def adamw(adapter: Adapter) -> Optimizer:
    segments = [Segment(stop=s, rate=1e-3, weight_decay=0.01) for s in adapter.stops.values()]
    return AdamW(adapter.master, segments=segments, betas=(0.9, 0.999), epsilon=1e-8,
                 max_grad_norm=1.0, limit=65504.0)  # fmt: skip


def prodigy(adapter: Adapter, *, decouple: bool) -> Optimizer:
    segments = [Segment(stop=s, rate=1.0, weight_decay=0.01) for s in adapter.stops.values()]
    return Prodigy(adapter.master, segments=segments, betas=(0.9, 0.999), beta3=None,
                   epsilon=1e-8, decouple=decouple, use_bias_correction=True,
                   safeguard_warmup=True, max_grad_norm=1.0, limit=65504.0)  # fmt: skip


def batch(with_text: bool) -> Batch:
    latents = np.ones((ROWS, 4, WIDTH, WIDTH), np.float32)
    ids = np.ones((ROWS, 3), np.int64)
    embeds = np.ones((ROWS, 3, 2 * WIDTH), np.float32), np.ones((ROWS, WIDTH), np.float32)
    return Batch(
        samples=(0, 1),
        noisy=latents,
        timesteps=np.ones(ROWS, np.float32),
        target=2 * latents,
        weight=np.ones(ROWS, np.float32),
        time_ids=np.ones((ROWS, 6), np.float32),
        text=(ids, ids, np.ones(ROWS, np.float32)) if with_text else embeds,
    )


def step(optimizer: Callable[[Adapter], Optimizer], *, with_text: bool, mode: str) -> Step:
    adapter = Adapter(models(with_text), seed=0)
    return Step(
        adapter,
        optimizer(adapter),
        Comm(0, 2),  # a group of one is enough to run the collective
        accumulation=2,
        dtype=ms.float16,
        wire="fp16",
        mode=mode,
        scale=LossScale(1.0),
        average=Ema(adapter, 0.99),
    )


def pynative() -> None:
    init()
    sys.stderr.write(f"\n{BEGIN}\n")
    sys.stderr.flush()
    for optimizer, with_text in (
        (adamw, True),
        (lambda adapter: prodigy(adapter, decouple=True), False),
        (lambda adapter: prodigy(adapter, decouple=False), False),
    ):
        made = step(optimizer, with_text=with_text, mode="pynative")
        assert made(0, 1.0, [batch(with_text)] * 2, stop=False).applied
        for way in ("views", "anew"):
            made.adapter.ways = (way,)
            made.adapter.written()


def graph() -> None:
    for with_text in (False, True):
        step(adamw, with_text=with_text, mode="graph").prepare(batch(with_text))


if __name__ == "__main__":
    ms.set_device("CPU")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    {"pynative": pynative, "graph": graph}[sys.argv[1]]()
