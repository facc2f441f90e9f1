"""Train the VAE, encode the pictures with it, then sharpen its decoder.

The encoder is frozen before latents are made, so they stay valid while the decoder goes on.
Shapes: B batch, 64 x 64 pixels, 16 x 16 latents.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import nn

from .networks import make_vae
from .training import Average, Progress, learning_rates, update

KL_WEIGHT = 2e-4
RAMP_STEPS = 300  # sampling noise and KL from the first step on collapse the posterior
Images = NDArray[np.uint8]  # (N, 64, 64, 3)


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The posterior of every picture, fp16."""

    mean: torch.Tensor  # (N, 4, 16, 16)
    std: torch.Tensor

    def sample(self, index: NDArray[np.int64]) -> torch.Tensor:
        mean, std = self.mean[index].float(), self.std[index].float()
        return mean + std * torch.randn_like(mean)


def train_vae(images: Images, *, steps: tuple[int, int], seed: int) -> AutoencoderKL:
    """Two rounds: batches of 16 first, then more steps with batches of 6."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = make_vae()
    train_round(vae, images, rng, steps=steps[0], batch=16, peak=1e-3, ramp=RAMP_STEPS)
    train_round(vae, images, rng, steps=steps[1], batch=6, peak=8e-4, ramp=0)
    vae.register_to_config(scaling_factor=scaling_factor(vae, images[:64]))
    return vae


def train_round(
    vae: AutoencoderKL,
    images: Images,
    rng: np.random.Generator,
    *,
    steps: int,
    batch: int,
    peak: float,
    ramp: int,
) -> None:
    parameters = list(vae.parameters())
    optimizer = make_optimizer(parameters)
    average = Average(parameters, decay=0.997, warmup=20)
    progress = Progress("vae", steps)
    for step, lr in enumerate(learning_rates(steps, peak=peak, warmup=50)):
        optimizer.param_groups[0]["lr"] = lr
        noise = min(1.0, step / ramp) if ramp else 1.0
        pixels = to_tensor(images[rng.integers(0, len(images), batch)])
        if rng.random() < 0.5:
            pixels = pixels.flip(3)
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, 1)
            logvar = logvar.clamp(-20, 10)
            latents = mean + noise * torch.exp(0.5 * logvar) * torch.randn_like(mean)
            decoded = vae.decoder(vae.post_quant_conv(latents))
        loss = reconstruction_loss(decoded.float(), pixels)
        update(optimizer, loss + noise * KL_WEIGHT * kl(mean.float(), logvar.float()), parameters)
        average.update()
        progress.add(loss.item())
    average.apply()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Images, *, batch: int = 64) -> Latents:
    posteriors = []
    for start in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posteriors.append(vae.encode(to_tensor(images[start : start + batch])).latent_dist)
    return Latents(
        mean=torch.cat([p.mean.half() for p in posteriors]),
        std=torch.cat([p.std.half() for p in posteriors]),
    )


def sharpen_decoder(
    vae: AutoencoderKL, images: Images, latents: Latents, *, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = make_optimizer(parameters)
    average = Average(parameters, decay=0.998, warmup=20)
    progress = Progress("decoder", steps)
    for lr in learning_rates(steps, peak=5e-4, warmup=50):
        optimizer.param_groups[0]["lr"] = lr
        index = rng.integers(0, len(images), 6)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decoder(vae.post_quant_conv(latents.sample(index)))
        loss = reconstruction_loss(decoded.float(), to_tensor(images[index]))
        update(optimizer, loss, parameters)
        average.update()
        progress.add(loss.item())
    average.apply()


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Images) -> float:
    """Decibels of the round trip; higher is better."""
    pixels = to_tensor(images)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(decoded, pixels)))


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, images: Images) -> float:
    """What brings the latents to a standard deviation of 1."""
    return round(1 / vae.encode(to_tensor(images)).latent_dist.sample().std().item(), 5)


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    blur = sum(
        F.l1_loss(ours, true) for ours, true in zip(edges(decoded), edges(pixels), strict=True)
    )
    return F.l1_loss(decoded, pixels) + 2 * F.mse_loss(decoded, pixels) + 0.5 * blur


def edges(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)


def to_tensor(images: Images) -> torch.Tensor:
    """(B, 64, 64, 3) in 0..255 -> (B, 3, 64, 64) in -1..1"""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
