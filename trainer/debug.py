"""What --debug adds to a run of one process: checked layers, and the first batch as pictures."""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindbooth.data.atomic import replace_file
from mindbooth.data.batches import Source
from mindbooth.data.examples import Example

from . import report, sample, sdxl
from .run import Run

log = logging.getLogger(__name__)

FLOATS = (ms.float16, ms.bfloat16, ms.float32)


def watch(models: Mapping[str, nn.Cell]) -> None:
    """Names the first layer whose output is not finite, by ending the run there.

    models: by the names that layers are told under. PyNative only. Also makes a crash in native
    code print the Python stacks.
    """
    faulthandler.enable()
    for prefix, model in models.items():
        for name, cell in model.cells_and_names():
            if not cell.cells():
                cell.register_forward_hook(_check(f"{prefix}.{name}"))


def show_batch(run: Run, source: Source, listed: Sequence[Sequence[Example]]) -> None:
    """Writes samples/first_batch.png: what the first samples are once encoded, with captions.

    listed: the examples of each of the source's sides.
    """
    samples = range(run.batching.batch)
    latents, labels = [], []
    for side, examples in zip(source.sides, listed, strict=True):
        for k in samples:
            example = examples[side.stream.example(k)]
            caption = "(caption dropped)" if side.drops_caption(k) else example.caption
            place = f"{example.image.name}, {source.variant(side, k).frame.time_ids}"
            latents.append(source.latents(side, k))
            labels.append(f"sample {k}: {caption} ({place})")
    pictures = sample.decode(sdxl.load_vae(run.model), Tensor(np.stack(latents)))
    path = run.output / "samples" / "first_batch.png"
    replace_file(path, report.png(report.grid([[picture] for picture in pictures], labels)))
    log.info("The first batch as pictures: %s", path)


def _check(name: str) -> Any:
    def hook(cell: nn.Cell, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or first.dtype not in FLOATS:
            return
        if not np.isfinite(first.astype(ms.float32).asnumpy()).all():
            raise FloatingPointError(f"The output of layer {name} is not finite.")

    return hook
