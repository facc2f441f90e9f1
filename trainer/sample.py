"""Pictures from the model with the adapter as it is: validation while training, and at the end.

The pictures of one occasion are shared out over the ranks and summed together, so that every rank
ends with all of them and none makes them twice. Picture i has the start noise of seed + i each
time: what changes from one occasion to the next is the adapter alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from PIL import Image

from mindbooth.data.meeting import Meeting

from . import report, sdxl
from .device import Comm
from .run import Run
from .sdxl import Model

log = logging.getLogger(__name__)

STEPS = 25
GUIDANCE = 5.0

Embeddings = Mapping[str, np.ndarray]


class Sampler:
    """Makes pictures with a loaded UNet, from embeddings that have been computed before."""

    def __init__(self, model: Model, unet: nn.Cell, dtype: ms.Type) -> None:
        self.pipeline = sdxl.bare_pipeline(model, unet)
        self.dtype = dtype

    def pictures(self, prompt: Embeddings, negative: Embeddings, seeds: Sequence[int], *,
                 size: tuple[int, int], steps: int = STEPS,
                 guidance: float = GUIDANCE) -> list[Image.Image]:  # fmt: skip
        """One picture a seed. size: (height, width) in pixels."""
        count = len(seeds)
        pipeline = self.pipeline
        channels = pipeline.unet.config.in_channels
        side = [n // pipeline.vae_scale_factor for n in size]
        noise = np.stack([start_noise(seed, (channels, *side)) for seed in seeds])
        latents = pipeline(
            prompt_embeds=self._repeat(prompt["prompt_embeds"], count),
            pooled_prompt_embeds=self._repeat(prompt["pooled"], count),
            negative_prompt_embeds=self._repeat(negative["prompt_embeds"], count),
            negative_pooled_prompt_embeds=self._repeat(negative["pooled"], count),
            latents=Tensor(noise).astype(self.dtype),
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        )[0]
        return decode(pipeline.vae, latents)

    def shared(self, prompt: Embeddings, negative: Embeddings, seeds: Sequence[int], comm: Comm, *,
               ready: Callable[[], None], size: tuple[int, int]) -> list[Image.Image]:  # fmt: skip
        """`pictures`, shared out over the ranks; every rank gets all of them.

        ready: returns when all ranks have made theirs, so that the collective need not wait.
        """
        mine = list(range(comm.rank, len(seeds), comm.size))
        sheet = np.zeros((len(seeds), *size, 3), np.float32)
        for i in mine:
            sheet[i] = self.pictures(prompt, negative, [seeds[i]], size=size)[0]
        ready()
        return [Image.fromarray(a.astype(np.uint8)) for a in comm.sum(sheet)]

    def _repeat(self, tensor: np.ndarray, count: int) -> Tensor:
        return Tensor(np.stack([tensor] * count)).astype(self.dtype)


class Validation:
    """The pictures of --validation_prompt: when they are due, and making them.

    Nothing is loaded before the first time.
    """

    def __init__(self, run: Run, unet: nn.Cell, meeting: Meeting) -> None:
        self._run, self._unet, self._meeting = run, unet, meeting
        self._prompt = run.config.output.validation_prompt
        self._sampler: Sampler | None = None

    def due(self, update: int, done: int) -> bool:
        """Whether going from `update` to `done` updates completes --validation_epochs epochs."""
        epoch, every = self._run.batching.epoch, self._run.config.output.validation_epochs
        return self._prompt is not None and epoch(update) // every < epoch(done) // every

    def make(self, update: int) -> str | None:
        """Makes the pictures and rank 0 writes their grid; its path within the output folder."""
        if self._prompt is None:
            return None
        run = self._run
        if self._sampler is None:
            self._sampler = Sampler(run.model, self._unet, run.dtype)
        texts = run.needed.texts
        prompt = run.store.read(texts[self._prompt])
        negative = (
            run.store.read(texts[""])
            if "" in texts
            else {name: np.zeros_like(tensor) for name, tensor in prompt.items()}
        )
        seeds = [run.seed + i for i in range(run.config.output.num_validation_images)]
        made = self._sampler.shared(
            prompt,
            negative,
            seeds,
            run.comm,
            ready=functools.partial(self._meeting.at, f"pictures {update}"),
            size=(run.config.data.resolution, run.config.data.resolution),
        )
        name = f"samples/update-{update:06d}.png"
        if run.comm.rank == 0:
            (run.output / "samples").mkdir(exist_ok=True)
            report.grid(
                [made],
                [self._prompt],
                title=f"after update {update}",
                columns=[f"seed {seed}" for seed in seeds],
            ).save(run.output / name)
            log.info("Pictures of %r: %s", self._prompt, run.output / name)
        return name


def decode(vae: nn.Cell, latents: Tensor) -> list[Image.Image]:
    """Pictures from latents (N, C, h, w) as the UNet has them."""
    scale, shift = sdxl.latent_scale(dict(vae.config))
    pictures = []
    for latent in latents.asnumpy().astype(np.float32):
        z = (latent / scale + shift).astype(np.float32)
        pixels = vae.decode(Tensor(z[None]))[0].asnumpy()[0]
        levels = np.clip(pixels * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
        pictures.append(Image.fromarray(levels.transpose(1, 2, 0)))
    return pictures


def start_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal start noise of one picture, fp32, the same for a seed wherever it is made."""
    generator: Any = np.random.Generator(np.random.PCG64(seed))
    noise: np.ndarray = generator.standard_normal(shape).astype(np.float32)
    return noise
