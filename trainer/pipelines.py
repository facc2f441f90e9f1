"""Whole pipelines for `mindbooth generate`: SDXL from text to latents, and its refiner.

Both end in latents, and `decode` makes pictures of them with the model's VAE in fp32: so a picture
without the refiner and one with it differ by the refiner alone. A refiner is looked at before
anything is loaded: that it is one, and that it works on the latents that the model makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from PIL import Image

from . import fetch, sample, sdxl
from .config import ConfigError, ModelConfig
from .sdxl import Model

REFINER = "StableDiffusionXLImg2ImgPipeline"
REFINERS_PARTS = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")


def base(model: Model, dtype: ms.Type) -> Any:
    """StableDiffusionXLPipeline of a model with its text encoders."""
    text = sdxl.TextEncoders(model, dtype)
    pipeline = sdxl.bare_pipeline(model, sdxl.load_unet(model, dtype))
    for number, suffix in enumerate(("", "_2")):
        pipeline.register_modules(
            **{f"tokenizer{suffix}": text.tokenizers[number],
               f"text_encoder{suffix}": text.encoders[number]}
        )  # fmt: skip
    zeros = sdxl.zeros_for_empty_prompt(model)
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    return pipeline


def precision(asked: str | None) -> str:
    """What to compute in on the device that was started: one of sdxl.DTYPES."""
    on_cpu = ms.get_context("device_target") == "CPU"
    if asked == "bf16" and on_cpu:
        raise ConfigError("--mixed_precision bf16: MindSpore has hardly any bf16 operators on a "
                          "CPU. Use fp16 or no.")  # fmt: skip
    return asked or ("no" if on_cpu else "fp16")


def count_steps(pipeline: Any, steps: int, strength: float | None = None) -> int:
    """How often the UNet is called for a picture; strength: a refiner does only the last steps."""
    pipeline.scheduler.set_timesteps(steps)
    if strength is None:
        return len(pipeline.scheduler.timesteps)
    return len(pipeline.get_timesteps(steps, strength)[0])


def draw(
    pipeline: Any, prompt: str, negative: str | None, *, random: Any, size: tuple[int, int],
    steps: int, guidance: float, each: Callable[[], None],
) -> Tensor:  # fmt: skip
    """Latents (1, C, h, w) of one picture. random: its generator; size: (height, width)."""
    side = [n // pipeline.vae_scale_factor for n in size]
    noise = random.standard_normal((1, pipeline.unet.config.in_channels, *side))
    return _finite(
        pipeline(
            prompt=prompt, negative_prompt=negative, height=size[0], width=size[1],
            latents=Tensor(noise.astype(np.float32)).astype(pipeline.unet.dtype),
            num_inference_steps=steps, guidance_scale=guidance, generator=random,
            output_type="latent", callback_on_step_end=_after_each_step(each),
        )[0]
    )  # fmt: skip


def refine(
    pipeline: Any, latents: Tensor, prompt: str, negative: str | None, *, random: Any, steps: int,
    guidance: float, strength: float, each: Callable[[], None],
) -> Tensor:  # fmt: skip
    """The same latents after the last `strength` of the steps were done again by the refiner."""
    return _finite(
        pipeline(
            prompt=prompt, negative_prompt=negative, image=latents, strength=strength,
            num_inference_steps=steps, guidance_scale=guidance, generator=random,
            output_type="latent", callback_on_step_end=_after_each_step(each),
        )[0]
    )  # fmt: skip


def decode(pipeline: Any, latents: Tensor) -> Image.Image:
    """The picture of latents (1, C, h, w)."""
    return sample.decode(pipeline.vae, latents)[0]


def too_long(pipeline: Any, prompts: Sequence[str]) -> Iterator[str]:
    """A line for each prompt that the tokenizer has no room for."""
    for prompt in prompts:
        cut = sdxl.too_long(pipeline.tokenizer, prompt)
        if cut is not None:
            yield f"The model reads {pipeline.tokenizer.model_max_length} tokens; cut off: {cut!r}."


def refiner(model: Model, base: Model, dtype: ms.Type) -> Any:
    """StableDiffusionXLImg2ImgPipeline of a refiner, with the VAE of the model it refines."""
    from mindone.diffusers import StableDiffusionXLImg2ImgPipeline
    from mindone.diffusers.utils import logging

    unet, vae = sdxl.load_unet(model, dtype), sdxl.load_vae(base)
    logging.disable_progress_bar()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        str(model.folder), unet=unet, vae=vae, mindspore_dtype=dtype, variant=model.variant
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def locate_refiner(name: str, config: ModelConfig, base: Model) -> Model:
    """The refiner's folder; downloaded first if it is a hub id. Raises ConfigError.

    config: of the model, for variant and cache_dir.
    """
    infix = f"*.{config.variant}*" if config.variant else "*"
    folder = fetch.folder(
        "--refiner", name, cache_dir=config.cache_dir,
        allow=["model_index.json", "*/*.json", "*/*.txt", f"*/{infix}.safetensors"],
        ignore=[] if config.variant else ["*.fp16.*", "*.bf16.*"],
    )  # fmt: skip
    lacking = [part for part in REFINERS_PARTS if not (folder / part).is_dir()]
    kind = _read(folder / "model_index.json").get("_class_name")
    if lacking or kind != REFINER:
        found = f"there is no folder {', '.join(lacking)}" if lacking else f"this is a {kind}"
        raise ConfigError(f"--refiner {name} is no refiner of SDXL in diffusers' layout, which is "
                          f"a {REFINER}: {found}.")  # fmt: skip
    model = Model(name=name, folder=folder, vae=folder / "vae", variant=config.variant,
                  vae_variant=config.variant)  # fmt: skip
    ours, theirs = (_latents(part.config("vae")) for part in (base, model))
    if ours != theirs:
        raise ConfigError(f"--refiner {name} does not understand the latents of {base.name}: "
                          f"their VAEs scale by {theirs} and {ours}.")  # fmt: skip
    for part in ("unet", "text_encoder_2"):
        for path in model.weights(part):
            fetch.tensors("--refiner", name, path)
    return model


def _latents(vae_config: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(vae_config.get(name) for name in ("scaling_factor", "latents_mean", "latents_std"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _after_each_step(each: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    def tell(pipeline: Any, number: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        each()
        return given

    return tell


def _finite(latents: Tensor) -> Tensor:
    if not np.isfinite(latents.astype(ms.float32).asnumpy()).all():
        raise ConfigError(
            "The model makes non-finite latents: it can't compute in this precision, or an "
            "adapter is too strong. Try --mixed_precision no, or a smaller --lora_scale."
        )
    return latents
