"""Build the mini SDXL and the instance pictures again: python examples/mini-sdxl/build.py --help

Stages run in order, each from the files of those before it in --work, so a stage can be repeated
alone. Nothing touches examples/mini-sdxl itself: the results are --work/model and --work/instance.
It needs torch and diffusers, the extra `compare` of setup.cfg.
"""

import argparse
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from builder import autoencoder, denoiser, networks, pictures, tokenizer

HELD_OUT = 64  # the last pictures, on which the VAE is measured


@dataclass(frozen=True, kw_only=True)
class Recipe:
    pictures: int
    vae_steps: tuple[int, int]
    unet_steps: int
    decoder_steps: int


# The shipped model was trained by the clock: these are its step counts, the decoder's a guess.
FULL = Recipe(pictures=30_000, vae_steps=(900, 2587), unet_steps=8319, decoder_steps=3000)
QUICK = Recipe(pictures=200, vae_steps=(4, 4), unet_steps=6, decoder_steps=4)


@dataclass(frozen=True, kw_only=True)
class Job:
    recipe: Recipe
    work: Path
    seed: int


def data(job: Job) -> str:
    """draw and caption the pictures of pretraining"""
    rng = np.random.default_rng(1234 + job.seed)
    drawn = [pictures.sample_photo(rng) for _ in range(job.recipe.pictures)]
    np.savez(
        job.work / "pictures.npz",
        images=np.stack([np.asarray(image) for image, _, _ in drawn]),
        time_ids=np.array([ids for _, _, ids in drawn], np.int32),
    )
    (job.work / "scenes.pickle").write_bytes(pickle.dumps([scene for _, scene, _ in drawn]))
    return f"{len(drawn)} pictures"


def tokenizers(job: Job) -> str:
    """learn the tokenizers from captions"""
    tokenizer.write_tokenizers(job.work / "tokenizers", seed=5 + job.seed)
    return f"{len(tokenizer.load_tokenizers(job.work / 'tokenizers')[0])} entries"


def vae(job: Job) -> str:
    """train the VAE"""
    images, _ = load_pictures(job)
    trained = autoencoder.train_vae(images[:-HELD_OUT], steps=job.recipe.vae_steps, seed=job.seed)
    trained.save_pretrained(job.work / "vae")
    return f"PSNR {autoencoder.psnr(trained, images[-HELD_OUT:]):.1f} dB on held-out pictures"


def latents(job: Job) -> str:
    """encode every picture with the VAE"""
    images, _ = load_pictures(job)
    encoded = autoencoder.encode(AutoencoderKL.from_pretrained(job.work / "vae"), images)
    torch.save({"mean": encoded.mean, "std": encoded.std}, job.work / "latents.pt")
    return f"standard deviation {encoded.mean.float().std():.3f}"


def unet(job: Job) -> str:
    """train the UNet and both text encoders"""
    _, time_ids = load_pictures(job)
    network, encoders = denoiser.train_denoiser(
        load_latents(job),
        pickle.loads((job.work / "scenes.pickle").read_bytes()),
        time_ids,
        tokenizers=job.work / "tokenizers",
        scaling_factor=AutoencoderKL.from_pretrained(job.work / "vae").config.scaling_factor,
        steps=job.recipe.unet_steps,
        seed=job.seed,
    )
    for name, trained in zip(DENOISER, (network, *encoders), strict=True):
        trained.save_pretrained(job.work / name)
    return ", ".join(
        f"{n} {p:,} parameters"
        for n, p in zip(DENOISER, map(size, (network, *encoders)), strict=True)
    )


def decoder(job: Job) -> str:
    """sharpen the VAE's decoder"""
    images, _ = load_pictures(job)
    trained = AutoencoderKL.from_pretrained(job.work / "vae")
    autoencoder.sharpen_decoder(
        trained,
        images[:-HELD_OUT],
        load_latents(job),
        steps=job.recipe.decoder_steps,
        seed=1 + job.seed,
    )
    trained.save_pretrained(job.work / "vae_sharp")
    return f"PSNR {autoencoder.psnr(trained, images[-HELD_OUT:]):.1f} dB on held-out pictures"


def export(job: Job) -> str:
    """put the parts together as a diffusers folder, fp16"""
    networks.save_pipeline(
        job.work / "model",
        unet=UNet2DConditionModel.from_pretrained(job.work / "unet"),
        encoders=(
            CLIPTextModel.from_pretrained(job.work / "text_encoder"),
            CLIPTextModelWithProjection.from_pretrained(job.work / "text_encoder_2"),
        ),
        vae=AutoencoderKL.from_pretrained(job.work / "vae_sharp"),
        tokenizers=job.work / "tokenizers",
    )
    total = sum(path.stat().st_size for path in (job.work / "model").rglob("*.*"))
    return f"{job.work / 'model'}, {total / 1e6:.1f} MB"


def instance(job: Job) -> str:
    """draw the five pictures of the subject"""
    folder = job.work / "instance"
    folder.mkdir(exist_ok=True)
    drawn = pictures.instance_pictures()
    for i, picture in enumerate(drawn):
        picture.save(folder / f"{i:02d}.png")
    return f"{folder}, {len(drawn)} pictures"


DENOISER = ("unet", "text_encoder", "text_encoder_2")
STAGES: dict[str, Callable[[Job], str]] = {
    "data": data,
    "tokenizer": tokenizers,
    "vae": vae,
    "latents": latents,
    "unet": unet,
    "decoder": decoder,
    "export": export,
    "instance": instance,
}


def main() -> None:
    options = parse_options()
    job = Job(recipe=QUICK if options.quick else FULL, work=options.work, seed=options.seed)
    job.work.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.stages or STAGES:
        start = time.monotonic()
        result = STAGES[name](job)
        print(f"{name}: {result} ({time.monotonic() - start:.0f} s)", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build the mini SDXL and its instance pictures from nothing.",
        epilog="stages, in order: "
        + "; ".join(f"{name}: {stage.__doc__}" for name, stage in STAGES.items()),
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help="only these (default: all)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/mini-sdxl"),
        help="folder of all results (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="every stage with a few steps: shows that they work, trains nothing of use",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another model")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    options = parser.parse_args()
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"no stage {', '.join(unknown)}; stages: {', '.join(STAGES)}")
    return options


def load_pictures(job: Job) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (N, 64, 64, 3) and time ids (N, 6)."""
    with np.load(job.work / "pictures.npz") as stored:
        return stored["images"], stored["time_ids"]


def load_latents(job: Job) -> autoencoder.Latents:
    return autoencoder.Latents(**torch.load(job.work / "latents.pt"))


def size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
