"""Pictures from a loaded UNet and embeddings that have been computed before.

A picture depends on its seed and prompt alone: its start noise, and whatever noise the scheduler
adds on the way, come from a generator of its own. Which batch or rank makes it changes rounding
only. Used by validation, and by all else that makes pictures with the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from PIL import Image

from . import sdxl
from .device import Comm
from .heartbeat import Heart
from .report import Progress
from .sdxl import Model

STEPS = 25
GUIDANCE = 5.0
AT_ONCE = 4  # more cost memory on an NPU; on a CPU four are made in little more time than one

Embeddings = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shot:
    """One picture to be made."""

    prompt: Embeddings
    seed: int


class Sampler:
    """Makes pictures with a UNet. has_to_stop: asked at each step of `shared`."""

    def __init__(self, model: Model, unet: nn.Cell, dtype: ms.Type, heart: Heart | None = None, *,
                 has_to_stop: Callable[[], bool] = lambda: False) -> None:  # fmt: skip
        self.pipeline = sdxl.bare_pipeline(model, unet)
        self.dtype = dtype
        self._heart = heart or Heart()
        self._has_to_stop = has_to_stop

    def pictures(self, prompt: Embeddings, negative: Embeddings, seeds: Sequence[int], *,
                 size: tuple[int, int], steps: int = STEPS,
                 guidance: float = GUIDANCE) -> list[Image.Image]:  # fmt: skip
        """One picture a seed, in one batch. size: (height, width) in pixels."""
        shots = [Shot(prompt, seed) for seed in seeds]
        return self._batch(shots, negative, size=size, steps=steps, guidance=guidance)

    def shared(self, shots: Sequence[Shot], negative: Embeddings, comm: Comm, *,
               ready: Callable[[], None],
               size: tuple[int, int]) -> list[Image.Image] | None:  # fmt: skip
        """The pictures of `shots`, shared out over the ranks; every rank gets all of them, or None
        if one of the ranks has to stop.

        ready: returns when all ranks have made theirs, so that the collective need not wait.
        """
        mine = range(comm.rank, len(shots), comm.size)
        sheet = np.zeros((len(shots), *size, 3), np.float32)
        stopped = np.zeros(1, np.float32)
        with (
            contextlib.suppress(_StopError),
            Progress("pictures", len(mine), unit="picture", show=comm.rank == 0,
                     heart=self._heart) as progress,
        ):  # fmt: skip
            stopped[:] = 1
            for first in range(0, len(mine), AT_ONCE):
                some = mine[first : first + AT_ONCE]
                made = self._batch(
                    [shots[i] for i in some], negative, size=size, steps=STEPS, guidance=GUIDANCE
                )
                for i, picture in zip(some, made, strict=True):
                    sheet[i] = picture
                    progress.advance()
            stopped[:] = 0
        ready()
        if comm.sum(stopped)[0]:
            return None
        return [Image.fromarray(a.astype(np.uint8)) for a in comm.sum(sheet)]

    def _batch(self, shots: Sequence[Shot], negative: Embeddings, *, size: tuple[int, int],
               steps: int, guidance: float) -> list[Image.Image]:  # fmt: skip
        pipeline = self.pipeline
        shape = (
            pipeline.unet.config.in_channels,
            *(n // pipeline.vae_scale_factor for n in size),
        )
        random = [generator(shot.seed) for shot in shots]
        noise = np.stack([g.standard_normal(shape).astype(np.float32) for g in random])
        prompts, nothing = [shot.prompt for shot in shots], [negative] * len(shots)
        latents = pipeline(
            prompt_embeds=self._stack(prompts, "prompt_embeds"),
            pooled_prompt_embeds=self._stack(prompts, "pooled"),
            negative_prompt_embeds=self._stack(nothing, "prompt_embeds"),
            negative_pooled_prompt_embeds=self._stack(nothing, "pooled"),
            latents=Tensor(noise).astype(self.dtype),
            generator=random,
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=self._after_a_step,
        )[0]
        return decode(pipeline.vae, latents)

    def _after_a_step(self, *_: Any) -> dict[str, Any]:
        self._heart.beat()
        if self._has_to_stop():
            raise _StopError
        return {}

    def _stack(self, embeddings: Sequence[Embeddings], name: str) -> Tensor:
        return Tensor(np.stack([each[name] for each in embeddings])).astype(self.dtype)


class _StopError(Exception):
    """Leaves the pipeline."""


def decode(vae: nn.Cell, latents: Tensor) -> list[Image.Image]:
    """Pictures from latents (N, C, h, w) as the UNet has them."""
    scale, shift = sdxl.latent_scale(dict(vae.config))
    pictures = []
    for latent in latents.astype(ms.float32).asnumpy():
        z = (latent / scale + shift).astype(np.float32)
        pixels = vae.decode(Tensor(z[None]))[0].asnumpy()[0]
        levels = np.clip(pixels * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
        pictures.append(Image.fromarray(levels.transpose(1, 2, 0)))
    return pictures


def generator(seed: int) -> Any:
    """The random numbers of one picture, the same for a seed wherever it is made."""
    return np.random.Generator(np.random.PCG64(seed))


def start_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal start noise of one picture, fp32: the first numbers of its generator."""
    noise: np.ndarray = generator(seed).standard_normal(shape).astype(np.float32)
    return noise
