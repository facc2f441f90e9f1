"""What --debug adds to a run of one process: checked layers, and the first batch as pictures."""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindbooth.data.batches import Source
from mindbooth.data.examples import Example

from . import report, sample, sdxl
from .sdxl import Model

log = logging.getLogger(__name__)


def watch(model: nn.Cell) -> None:
    """Names the first layer whose output is not finite, by ending the run there.

    PyNative only. Also makes a crash in native code print the Python stacks.
    """
    faulthandler.enable()
    for name, cell in model.cells_and_names():
        if not cell.cells():
            cell.register_forward_hook(_check(name))


def show_batch(output: Path, source: Source, examples: Sequence[Example], model: Model,
               samples: Sequence[int]) -> None:  # fmt: skip
    """Writes samples/first_batch.png: what the first samples are once encoded, with captions."""
    vae = sdxl.load_vae(model)
    latents = Tensor(np.stack([source.latents(k) for k in samples]))
    pictures = sample.decode(vae, latents)
    labels = [
        f"sample {k}: {examples[source.stream.example(k)].caption} "
        f"({examples[source.stream.example(k)].image.name}, {source.variant(k).time_ids})"
        for k in samples
    ]
    (output / "samples").mkdir(exist_ok=True)
    path = output / "samples" / "first_batch.png"
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
