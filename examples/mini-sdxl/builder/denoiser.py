"""Train the UNet and both text encoders together, from scratch, to predict the noise in latents.

A caption is drawn anew whenever its picture comes up. 9 % of the prompts are zeroed (what SDXL
means by "no prompt") and 2 % are empty texts, which classifier-free guidance needs.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from .autoencoder import Latents
from .captions import caption
from .networks import TextEncoders, encode_prompts, make_scheduler, make_text_encoders, make_unet
from .scenes import Scene
from .tokenizer import load_tokenizers
from .training import Average, Progress, learning_rates, update

BATCH = 16
PEAK_LR, TEXT_LR_SHARE = 1e-3, 0.7
SNR_CAP = 5.0  # min-SNR weighting, https://arxiv.org/abs/2303.09556
OFFSET_NOISE = 0.05
ZEROED, EMPTY = 0.09, 0.02


def train_denoiser(
    latents: Latents,
    scenes: Sequence[Scene],
    time_ids: NDArray[np.int32],
    *,
    tokenizers: Path,
    scaling_factor: float,
    steps: int,
    seed: int,
) -> tuple[UNet2DConditionModel, TextEncoders]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenize = Tokenize(tokenizers)
    unet, encoders = make_unet(), make_text_encoders(tokenize.vocabulary)
    text_parameters = [p for encoder in encoders for p in encoder.parameters()]
    parameters = [*unet.parameters(), *text_parameters]
    groups = [{"params": list(unet.parameters())}, {"params": text_parameters}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    average = Average(parameters, decay=0.9985, warmup=10)
    progress = Progress("unet", steps)
    kept = make_scheduler().alphas_cumprod  # (1000,) share of the signal's variance
    snr = kept / (1 - kept)
    weights = snr.clamp(max=SNR_CAP) / snr

    for lr in learning_rates(steps, peak=PEAK_LR, warmup=150):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[1]["lr"] = TEXT_LR_SHARE * lr
        index = rng.integers(0, len(scenes), BATCH)
        texts = ["" if rng.random() < EMPTY else caption(scenes[i], rng) for i in index]
        embeddings, pooled = encode_prompts(encoders, tokenize(texts))
        present = torch.from_numpy(rng.random(BATCH) > ZEROED).float()
        clean = latents.sample(index) * scaling_factor  # (B, 4, 16, 16)
        noise = torch.randn_like(clean) + OFFSET_NOISE * torch.randn(BATCH, 4, 1, 1)
        timesteps = torch.randint(0, len(kept), (BATCH,))
        signal = kept[timesteps][:, None, None, None]
        predicted = unet(
            signal.sqrt() * clean + (1 - signal).sqrt() * noise,
            timesteps,
            embeddings * present[:, None, None],
            added_cond_kwargs={
                "text_embeds": pooled * present[:, None],
                "time_ids": torch.from_numpy(time_ids[index]).float(),
            },
        ).sample
        errors = ((predicted - noise) ** 2).mean((1, 2, 3))
        update(optimizer, (errors * weights[timesteps]).mean(), parameters)
        average.update()
        progress.add(errors.mean().item())
    average.apply()
    return unet, encoders


class Tokenize:
    """Texts -> the ids of both tokenizers, (B, L) each; remembers texts that it has seen."""

    def __init__(self, folder: Path) -> None:
        self._tokenizers = load_tokenizers(folder)
        self._ids = lru_cache(maxsize=200_000)(self._look_up)

    @property
    def vocabulary(self) -> int:
        return len(self._tokenizers[0])

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = zip(*map(self._ids, texts), strict=True)
        return torch.tensor(first), torch.tensor(second)

    def _look_up(self, text: str) -> tuple[list[int], list[int]]:
        first, second = (
            tokenizer(text, padding="max_length", truncation=True).input_ids
            for tokenizer in self._tokenizers
        )
        return first, second
