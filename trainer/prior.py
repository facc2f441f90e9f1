"""Makes the class images that prior preservation needs and --class_data_dir lacks.

The ranks share the work; the models are loaded only by a rank that has something to make, and leave
memory with the function that loaded them. Each picture is written as soon as its batch is done, so
that whoever is stopped goes on from there. A picture is the same whoever makes it, up to the
rounding of another batch size, device or precision.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

from mindbooth.data import class_images
from mindbooth.data.class_images import Origin
from mindbooth.data.errors import DataError
from mindbooth.data.meeting import Meeting

from . import sdxl
from .config import TrainConfig
from .device import Comm
from .heartbeat import Heart
from .report import Progress
from .sample import GUIDANCE, Embeddings, Sampler
from .sdxl import Model

log = logging.getLogger(__name__)

# The known script's number. Pictures to look at have fewer; these are made once and learned from.
STEPS = 50


def fill(config: TrainConfig, model: Model, comm: Comm, meeting: Meeting, dtype: ms.Type,
         heart: Heart | None = None) -> None:  # fmt: skip
    """Makes what is missing, and returns when this rank sees all of it; nothing without
    --with_prior_preservation. For ranks that have just met.

    dtype: the training's, taken where --prior_generation_precision says nothing.
    """
    prior = config.prior
    if not prior.with_prior_preservation:
        return
    assert prior.class_prompt is not None
    folder, count = prior.folder, prior.num_class_images
    origin = Origin(
        prompt=prior.class_prompt,
        model=Path(model.name).resolve().name,
        resolution=config.data.resolution,
        steps=STEPS,
        guidance=GUIDANCE,
    )
    missing = _agreed(class_images.missing(folder, count), count, comm)
    if comm.rank == 0:
        _tell(folder, len(missing), count, origin)
    mine = missing[comm.rank :: comm.size]
    if mine:
        class_images.ensure_writable(folder)
        if prior.prior_generation_precision is not None:
            dtype = sdxl.DTYPES[prior.prior_generation_precision]
        _make(mine, folder, origin, model, dtype, batch=prior.sample_batch_size, heart=heart)
        gc.collect()
    meeting.at("class images")
    class_images.wait(folder, count)


def _agreed(missing: Sequence[int], count: int, comm: Comm) -> list[int]:
    """Rank 0's list on every rank: they share out one list, even while another run fills the
    folder."""
    flags = np.zeros(count, np.float32)
    if comm.rank == 0:
        flags[missing] = 1
    return [int(number) for number in np.flatnonzero(comm.sum(flags))]


def _tell(folder: Path, missing: int, count: int, origin: Origin) -> None:
    for remark in class_images.remarks(folder, count=count, origin=origin):
        log.warning("%s", remark)
    if missing:
        log.info("Making %d class images of %r; %d are in %s.", missing, origin.prompt,
                 count - missing, folder)  # fmt: skip


def _make(numbers: Sequence[int], folder: Path, origin: Origin, model: Model, dtype: ms.Type, *,
          batch: int, heart: Heart | None) -> None:  # fmt: skip
    prompt, negative = _embeddings(origin.prompt, model, dtype)
    gc.collect()  # the text encoders go before the UNet comes
    sampler = Sampler(model, sdxl.load_unet(model, dtype), dtype, heart)
    with Progress("class images", len(numbers), unit="picture", heart=heart) as progress:
        for first in range(0, len(numbers), batch):
            some = numbers[first : first + batch]
            pictures = sampler.pictures(
                prompt,
                negative,
                seeds=some,
                size=(origin.resolution, origin.resolution),
                steps=origin.steps,
                guidance=origin.guidance,
            )
            for number, picture in zip(some, pictures, strict=True):
                if picture.getbbox() is None:
                    raise DataError(
                        f"the model made an all black class image (number {number}): its numbers "
                        "overflow. Try --prior_generation_precision fp32, or another model"
                    )
                class_images.write(folder, number, picture, origin)
                progress.advance()


def _embeddings(text: str, model: Model, dtype: ms.Type) -> tuple[Embeddings, Embeddings]:
    """Of the prompt, and of what the model's own pipeline takes for none."""
    encoders = sdxl.TextEncoders(model, dtype)
    prompt = encoders.encode(text)
    if sdxl.zeros_for_empty_prompt(model):
        return prompt, {name: np.zeros_like(tensor) for name, tensor in prompt.items()}
    return prompt, encoders.encode("")
