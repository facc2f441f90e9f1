"""Cache entries and the sample stream to batches: float32 arrays for the fused step, on the host.

Called from the prefetch thread. Each draw of a sample has its own generator (`stream.Purpose`),
so a batch depends on the sample numbers alone. What noise and timestep mean is the objective's
business, which is handed in. B samples, R rows: B, or 2 B where each sample brings a picture of
the class along. C h w latent, L tokens, D width, P pooled width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cache import Missing, Store
from .framing import Frame, Size
from .stream import Purpose, Stream

Floats = NDArray[np.float32]
Arrays = tuple[NDArray[Any], ...]

# (latents, noise, u) -> (noisy, timestep, target, weight); u is uniform in [0, 1).
Objective = Callable[[Floats, Floats, float], tuple[Floats, float, Floats, float]]
# (an item's text, whether it is dropped for the empty prompt) -> what the step gets for it.
Texts = Callable[[str, bool], Arrays]
# Encode the entry of this key again: published if that can be, and given back.
Repair = Callable[[str], dict[str, NDArray[Any]]]

_CAPTIONS_KEPT = 1024


class Variant(NamedTuple):
    """A picture in a frame. latents: the key of its entry. file, digest: of the picture."""

    latents: str
    frame: Frame
    file: str
    digest: str


class Item(NamedTuple):
    """What an example is in the cache. text: what `Texts` takes for it."""

    variants: tuple[Variant, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """text: the prompts' embeddings (R, L, D) and pooled embeddings (R, P); or, for text encoders
    in training, both tokenizers' ids (R, L) and 0 or 1 for a dropped or kept caption (R,)."""

    samples: tuple[int, ...]
    noisy: Floats  # (R, C, h, w)
    timesteps: Floats  # (R,)
    target: Floats  # (R, C, h, w)
    weight: Floats  # (R,)
    time_ids: Floats  # (R, 6)
    text: Arrays


@dataclass(frozen=True, kw_only=True)
class Side:
    """Pictures of the subject, or of its class. weight: of their loss."""

    stream: Stream
    items: Sequence[Item]
    objective: Objective
    weight: float = 1.0
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        assert len(self.items) == self.stream.examples

    def item(self, k: int) -> Item:
        """That of sample k."""
        return self.items[self.stream.example(k)]

    def variant(self, k: int, size: Size) -> Variant:
        """Which frame of its picture sample k is, of those that have this size."""
        variants = [variant for variant in self.item(k).variants if variant.frame.size == size]
        assert variants, f"sample {k} has no frame of {size[0]} x {size[1]}"
        return variants[int(self.stream.generator(k, Purpose.VARIANT).random() * len(variants))]

    def drops_caption(self, k: int) -> bool:
        """Whether sample k has the empty prompt."""
        if not self.caption_dropout:
            return False
        return bool(self.stream.generator(k, Purpose.CAPTION).random() < self.caption_dropout)

    def normal(self, k: int, purpose: Purpose, shape: tuple[int, ...]) -> Floats:
        """Standard normal numbers of sample k."""
        return self.stream.generator(k, purpose).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Entries of the cache by key; one that has gone bad meanwhile is repaired."""

    store: Store
    repair: Repair

    def __call__(self, key: str) -> dict[str, NDArray[Any]]:
        try:
            return self.store.read(key)
        except Missing:
            return self.repair(key)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Texts from the cache: an item's text is its key there.

    empty: the key of the empty prompt's entry; None where the model takes zeros for it.
    """

    read: Reader
    empty: str | None = None

    def __call__(self, text: str, dropped: bool) -> Arrays:
        entry = self.read(self.empty if dropped and self.empty else text)
        found = (entry["prompt_embeds"], entry["pooled"])
        return tuple(map(np.zeros_like, found)) if dropped and not self.empty else found


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Texts for encoders in training: an item's text is its caption.

    ids: gives both tokenizers' ids of a caption; those of the last captions are kept. empty: the
    empty prompt's; None where the model takes zeros for it.
    """

    ids: Callable[[str], Arrays]
    empty: Arrays | None = None

    def __call__(self, text: str, dropped: bool) -> Arrays:
        if dropped and self.empty:
            return (*self.empty, np.ones((), np.float32))
        return (*self._kept(text), np.full((), not dropped, np.float32))

    @cached_property
    def _kept(self) -> Callable[[str], Arrays]:
        return lru_cache(_CAPTIONS_KEPT)(self.ids)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Assembles batches. The model's latents are (sample - shift) * scale, as diffusers has it;
    both may be one number or one a channel, (C, 1, 1).

    sides: the subject's pictures and, for prior preservation, those of its class. The mean over
    the rows of a batch is the mean over the subject's plus `weight` times that over the class's.
    All variants of a subject's item have one size, that of its bucket; a class item has variants
    of every size that there is, because it takes that of the sample which it is the partner of.
    """

    read: Reader
    sides: tuple[Side, ...]
    texts: Texts
    scale: float | Floats
    shift: float | Floats = 0.0
    noise_offset: float = 0.0

    def assemble(self, samples: Sequence[int]) -> Batch:
        """The batch of these sample numbers."""
        rows = [(side, k) for side in self.sides for k in samples]
        columns = tuple(zip(*(self._sample(side, k) for side, k in rows), strict=True))
        noisy, timesteps, target, weight, time_ids = (
            np.stack([np.asarray(value, dtype=np.float32) for value in column])
            for column in columns
        )
        texts = zip(
            *(self.texts(side.item(k).text, side.drops_caption(k)) for side, k in rows), strict=True
        )
        return Batch(
            samples=tuple(samples),
            noisy=noisy,
            timesteps=timesteps,
            target=target,
            weight=weight,
            time_ids=time_ids,
            text=tuple(np.stack(column) for column in texts),
        )

    def variant(self, side: Side, k: int) -> Variant:
        """Which frame of its picture sample k of a side is: one of the subject's size."""
        return side.variant(k, self.sides[0].item(k).variants[0].frame.size)

    def latents(self, side: Side, k: int) -> Floats:
        """A draw from the VAE's distribution for sample k, shifted and scaled.  -> (C, h, w)"""
        entry = self.read(self.variant(side, k).latents)
        mean = entry["mean"].astype(np.float32)
        eps = side.normal(k, Purpose.LATENTS, mean.shape)
        drawn = mean + entry["std"].astype(np.float32) * eps
        shift, scale = np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)
        return (drawn - shift) * scale

    def _sample(self, side: Side, k: int) -> tuple[Any, ...]:
        latents = self.latents(side, k)
        noise = side.normal(k, Purpose.NOISE, latents.shape)
        if self.noise_offset:  # https://www.crosslabs.org/blog/diffusion-with-offset-noise
            channels = side.normal(k, Purpose.OFFSET, (latents.shape[0], 1, 1))
            noise = noise + np.float32(self.noise_offset) * channels
        u = float(side.stream.generator(k, Purpose.TIMESTEP).random())
        noisy, timestep, target, weight = side.objective(latents, noise, u)
        weight *= side.weight * len(self.sides)
        return noisy, timestep, target, weight, self.variant(side, k).frame.time_ids
