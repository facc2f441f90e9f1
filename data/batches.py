"""Cache entries and the sample stream to batches: float32 arrays for the fused step, on the host.

Called from the prefetch thread. Each draw of a sample has its own generator (`stream.Purpose`),
so a batch depends on the sample numbers alone. What noise and timestep mean is the objective's
business, which is handed in. B batch, C h w latent, L tokens, D width, P pooled width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache import Missing, Store
from .errors import DataError
from .stream import Purpose, Stream

Floats = NDArray[np.float32]

# (latents, noise, u) -> (noisy, timestep, target, weight); u is uniform in [0, 1).
Objective = Callable[[Floats, Floats, float], tuple[Floats, float, Floats, float]]
# Encode the entry of this key again and publish it.
Repair = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One frame of a picture: the key of its latents, and what SDXL is told about it."""

    latents: str
    time_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Item:
    """What the stream's example of the same index is in the cache."""

    variants: tuple[Variant, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    samples: tuple[int, ...]
    noisy: Floats  # (B, C, h, w)
    timesteps: Floats  # (B,)
    target: Floats  # (B, C, h, w)
    weight: Floats  # (B,)
    prompt_embeds: Floats  # (B, L, D)
    pooled: Floats  # (B, P)
    time_ids: Floats  # (B, 6)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Assembles batches. The model's latents are (sample - shift) * scale, as diffusers has it;
    both may be one number or one a channel, (C, 1, 1)."""

    store: Store
    stream: Stream
    items: Sequence[Item]
    objective: Objective
    scale: float | Floats
    shift: float | Floats = 0.0
    repair: Repair | None = None

    def __post_init__(self) -> None:
        assert len(self.items) == self.stream.examples

    def assemble(self, samples: Sequence[int]) -> Batch:
        """The batch of these sample numbers; an entry that has gone bad meanwhile is repaired."""
        columns = tuple(zip(*(self._sample(k) for k in samples), strict=True))
        noisy, timesteps, target, weight, prompt_embeds, pooled, time_ids = (
            np.stack([np.asarray(value, dtype=np.float32) for value in column])
            for column in columns
        )
        return Batch(
            samples=tuple(samples),
            noisy=noisy,
            timesteps=timesteps,
            target=target,
            weight=weight,
            prompt_embeds=prompt_embeds,
            pooled=pooled,
            time_ids=time_ids,
        )

    def variant(self, k: int) -> Variant:
        """Which frame of its picture sample k is."""
        variants = self.items[self.stream.example(k)].variants
        return variants[int(self.stream.generator(k, Purpose.VARIANT).random() * len(variants))]

    def latents(self, k: int) -> Floats:
        """A draw from the VAE's distribution for sample k, shifted and scaled.  -> (C, h, w)"""
        entry = self._read(self.variant(k).latents)
        mean = entry["mean"].astype(np.float32)
        eps = self._normal(k, Purpose.LATENTS, mean.shape)
        drawn = mean + entry["std"].astype(np.float32) * eps
        shift, scale = np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)
        return (drawn - shift) * scale

    def _sample(self, k: int) -> tuple[Any, ...]:
        latents = self.latents(k)
        noise = self._normal(k, Purpose.NOISE, latents.shape)
        u = float(self.stream.generator(k, Purpose.TIMESTEP).random())
        text = self._read(self.items[self.stream.example(k)].text)
        return (
            *self.objective(latents, noise, u),
            text["prompt_embeds"],
            text["pooled"],
            self.variant(k).time_ids,
        )

    def _normal(self, k: int, purpose: Purpose, shape: tuple[int, ...]) -> Floats:
        return self.stream.generator(k, purpose).standard_normal(shape, dtype=np.float32)

    def _read(self, key: str) -> dict[str, NDArray[Any]]:
        try:
            return self.store.read(key)
        except Missing as err:
            if self.repair is None:
                raise DataError(
                    f"cache entry {self.store.path(key)} was removed or damaged during the run: "
                    "start again, it will be encoded anew"
                ) from err
        self.repair(key)
        try:
            return self.store.read(key)
        except Missing as err:
            raise DataError(
                f"cache entry {self.store.path(key)} cannot be kept: it was encoded again and is "
                "gone or damaged once more. Check that disk"
            ) from err
