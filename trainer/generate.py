"""`mindbooth generate`: pictures from SDXL with adapters, with or without a refiner.

All input is looked at before anything large is loaded. Pictures are drawn one after the other, each
from its own seed, and written as soon as they are there. The refiner comes last, when the model has
left memory, and goes on from the latents that the pictures were decoded from.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindbooth.ranktable.placement import Placement

from .__main__ import hide_chatter, keep_torch_out
from .config import ConfigError, ModelConfig
from .errors import Unreachable
from .generate_options import GenerateConfig, parse

if TYPE_CHECKING:
    import mindspore as ms
    from mindspore import Tensor
    from PIL import Image

    from .adapters import Adapter
    from .sdxl import Model

log = logging.getLogger(__name__)

REFINED = "-refined"
SHEET = "all"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done. paths: a file for each stem. told: what every picture says of itself."""

    asked: GenerateConfig
    model: Model
    refiner: Model | None
    adapters: list[Adapter]
    dtype: ms.Type
    wanted: list[tuple[str, int, str]]
    paths: dict[str, Path]
    told: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture, and the latents (1, C, h, w) that it was decoded from.

    random: its generator, which the refiner goes on with.
    """

    prompt: str
    seed: int
    stem: str
    random: Any
    latents: Tensor
    picture: Image.Image


def main(argv: Sequence[str] | None = None, prog: str = "mindbooth generate") -> int:
    """Makes the pictures, prints where they are, and returns the exit status."""
    keep_torch_out()
    hide_chatter()
    try:
        for path in run(parse(sys.argv[1:] if argv is None else argv, prog)):
            print(path)
        return 0
    except (ConfigError, Unreachable) as err:
        print(f"mindbooth: error: {err}", file=sys.stderr, flush=True)
        return 2 if isinstance(err, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def run(asked: GenerateConfig) -> list[Path]:
    """Makes the pictures; the files that were written. Raises ConfigError."""
    from . import report

    report.start()
    for line in asked.useless():
        log.warning("%s", line)
    job = _prepare(asked)
    drawn = _draw(job)
    across = asked.num_images
    rows = [[one.picture for one in drawn[i : i + across]] for i in range(0, len(drawn), across)]
    labels = [f'"{prompt}"' for prompt in asked.prompt]
    columns = [f"seed {one.seed}" for one in drawn[:across]]
    if job.refiner is not None:
        gc.collect()  # the model goes before the refiner comes
        refined = _refine(job, job.refiner, drawn)
        rows = [[one.picture, other] for one, other in zip(drawn, refined, strict=True)]
        labels = [f'"{one.prompt}", seed {one.seed}' for one in drawn]
        columns = ["without refiner", "with refiner"]
    if SHEET in job.paths:
        _save(job, SHEET, report.grid(rows, labels, columns=columns))
    return list(job.paths.values())


def _prepare(asked: GenerateConfig) -> Job:
    """Finds all that is needed, and starts the device."""
    from . import adapters, device, gallery, pipelines, sdxl

    found = [adapters.find(name, asked.cache_dir) for name in asked.lora]
    config = ModelConfig(
        pretrained_model_name_or_path=adapters.base_model(
            found, asked.pretrained_model_name_or_path
        ),
        pretrained_vae_model_name_or_path=asked.pretrained_vae_model_name_or_path,
        revision=asked.revision,
        variant=asked.variant,
        cache_dir=asked.cache_dir,
    )
    model = _located(config, named_by_card=asked.pretrained_model_name_or_path is None)
    refiner = pipelines.locate_refiner(asked.refiner, config, model) if asked.refiner else None
    try:
        asked.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"--output_dir {asked.output_dir}: {err.strerror}.") from err
    if not os.access(asked.output_dir, os.W_OK):
        raise ConfigError(f"--output_dir {asked.output_dir}: it can't be written to.")
    device.start(Placement.from_environ({}), target=asked.device_target)
    for package in ("mindone", "transformers"):  # they warn of what is as it should be
        logging.getLogger(package).setLevel(logging.ERROR)
    precision = pipelines.precision(asked.mixed_precision)

    first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    wanted = [
        (prompt, first + i, f"{slug}-seed{first + i}")
        for prompt, slug in zip(asked.prompt, gallery.slugs(asked.prompt), strict=True)
        for i in range(asked.num_images)
    ]
    stems = [stem for *_, stem in wanted]
    if refiner is not None:
        stems += [stem + REFINED for stem in stems]
    if refiner is not None or len(asked.prompt) > 1:
        stems.append(SHEET)
    return Job(
        asked=asked,
        model=model,
        refiner=refiner,
        adapters=found,
        dtype=sdxl.DTYPES[precision],
        wanted=wanted,
        paths=gallery.unused(asked.output_dir, stems),
        told=_told(asked, config, precision),
    )


def _located(config: ModelConfig, *, named_by_card: bool) -> Model:
    from . import sdxl

    try:
        return sdxl.locate(config)
    except ConfigError as err:
        if named_by_card:
            raise ConfigError(f"{err} The adapter's card names it; give another here.") from err
        raise


def _draw(job: Job) -> list[Drawn]:
    from . import adapters, pipelines, report, sample

    asked = job.asked
    pipeline = pipelines.base(job.model, job.dtype)
    adapters.load(pipeline, job.adapters, asked.scales)
    for warning in pipelines.too_long(pipeline, asked.prompt):
        log.warning("%s", warning)
    native = pipeline.default_sample_size * pipeline.vae_scale_factor
    size = (asked.height or native, asked.width or native)
    steps = pipelines.count_steps(pipeline, asked.num_inference_steps)
    drawn = []
    with report.Progress("drawing", steps * len(job.wanted), unit="step") as progress:
        for prompt, seed, stem in job.wanted:
            random = sample.generator(seed)
            latents = pipelines.draw(
                pipeline, prompt, asked.negative_prompt, random=random, size=size,
                steps=asked.num_inference_steps, guidance=asked.guidance_scale,
                each=progress.advance,
            )  # fmt: skip
            picture = pipelines.decode(pipeline, latents)
            _save(job, stem, picture, prompt=prompt, seed=str(seed))
            drawn.append(
                Drawn(prompt=prompt, seed=seed, stem=stem, random=random, latents=latents,
                      picture=picture)
            )  # fmt: skip
    return drawn


def _refine(job: Job, refiner: Model, drawn: Sequence[Drawn]) -> list[Image.Image]:
    from . import pipelines, report

    asked = job.asked
    pipeline = pipelines.refiner(refiner, job.model, job.dtype)
    steps = pipelines.count_steps(pipeline, asked.num_inference_steps, asked.refiner_strength)
    told = {"refiner": refiner.name, "refiner_strength": str(asked.refiner_strength)}
    pictures = []
    with report.Progress("refining", steps * len(drawn), unit="step") as progress:
        for one in drawn:
            latents = pipelines.refine(
                pipeline, one.latents, one.prompt, asked.negative_prompt, random=one.random,
                steps=asked.num_inference_steps, guidance=asked.guidance_scale,
                strength=asked.refiner_strength, each=progress.advance,
            )  # fmt: skip
            picture = pipelines.decode(pipeline, latents)
            _save(job, one.stem + REFINED, picture, prompt=one.prompt, seed=str(one.seed), **told)
            pictures.append(picture)
    return pictures


def _save(job: Job, stem: str, picture: Image.Image, **more: str) -> None:
    from . import gallery

    gallery.save(picture, job.paths[stem], job.told | more)


def _told(asked: GenerateConfig, config: ModelConfig, precision: str) -> dict[str, str]:
    """The options of all pictures, under their flags' names."""
    loras = (f"{name} {scale:g}" for name, scale in zip(asked.lora, asked.scales, strict=True))
    told = {
        "negative_prompt": asked.negative_prompt,
        "num_inference_steps": str(asked.num_inference_steps),
        "guidance_scale": str(asked.guidance_scale),
        "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "pretrained_vae_model_name_or_path": config.pretrained_vae_model_name_or_path,
        "revision": config.revision,
        "lora": "\n".join(loras),
        "mixed_precision": precision,
        "software": f"mindbooth {version('mindbooth')}",
    }
    return {name: value for name, value in told.items() if value}
