"""What --debug adds to a run of one process: checked layers, and the first batch as pictures."""

from __future__ import annotations

import faulthandler
import logging
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindbooth.data.batches import Source

from . import report, sample, sdxl
from .run import Run

log = logging.getLogger(__name__)


def watch(model: nn.Cell) -> None:
    """Names the first layer whose output is not finite, by ending the run there.

    PyNative only. Also makes a crash in native code print the Python stacks.
    """
    faulthandler.enable()
    for name, cell in model.cells_and_names():
        if not cell.cells():
            cell.register_forward_hook(_check(name))


def show_batch(run: Run, source: Source) -> None:
    """Writes samples/first_batch.png: what the first samples are once encoded, with captions."""
    samples = range(run.batching.batch)
    latents = Tensor(np.stack([source.latents(k) for k in samples]))
    pictures = sample.decode(sdxl.load_vae(run.model), latents)
    used = [run.examples[source.stream.example(k)] for k in samples]
    labels = [
        f"sample {k}: {example.caption} ({example.image.name}, {source.variant(k).time_ids})"
        for k, example in zip(samples, used, strict=True)
    ]
    path = run.output / "samples" / "first_batch.png"
    path.parent.mkdir(exist_ok=True)
    report.grid([[picture] for picture in pictures], labels).save(path)
    log.info("The first batch as pictures: %s", path)


def _check(name: str) -> Any:
    def hook(cell: nn.Cell, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or first.dtype not in (ms.float16, ms.float32):
            return
        if not np.isfinite(first.asnumpy()).all():
            raise FloatingPointError(f"The output of layer {name} is not finite.")

    return hook
