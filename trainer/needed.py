"""What a run needs from the cache: the keys of pictures' latents and of prompts' embeddings.

`plan()` reads pictures' bytes and headers, at most once for each picture ever, and no pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms

from mindbooth.data import buckets, framing, recipes
from mindbooth.data.batches import Item, Variant
from mindbooth.data.digests import WeightDigests
from mindbooth.data.examples import Example
from mindbooth.data.framing import Frame, Size
from mindbooth.data.pictures import Picture

from . import sdxl
from .config import DataConfig
from .sdxl import Model

REMARKS_SHOWN = 3  # of prompts that are cut, and of pictures that are enlarged

# Digest and size of each picture.
Looker = Callable[[Sequence[str]], Mapping[str, Picture]]


@dataclass(frozen=True, slots=True)
class Framed:
    """One entry of latents to be made: a picture in a frame."""

    file: str
    digest: str
    frame: Frame
    interpolation: str


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a run needs from the cache.

    items: one an example; class_items: one a class example. pictures: cache key -> what the entry
    is made of. texts: prompt -> key; none for text encoders in training, and an item's text is its
    caption then. remarks: what the user should know about prompts and pictures.
    """

    items: tuple[Item, ...]
    class_items: tuple[Item, ...]
    pictures: Mapping[str, Framed]
    texts: Mapping[str, str]
    remarks: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """All keys, in the same order on every rank."""
        return [*self.pictures, *self.texts.values()]

    @functools.cached_property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        """The examples of each size that occurs."""
        return buckets.by_size([item.variants[0].size for item in self.items])


def plan(examples: Sequence[Example], class_examples: Sequence[Example], prompts: Sequence[str],
         config: DataConfig, model: Model, digests: WeightDigests, dtype: ms.Type, *,
         texts: bool, look_at: Looker) -> Needed:  # fmt: skip
    """Keys of everything that the examples, and further prompts, need.

    texts: whether embeddings are needed too.
    """
    tokenizers = sdxl.load_tokenizers(model)
    captions = list(dict.fromkeys([*prompts, *(e.caption for e in (*examples, *class_examples))]))
    keys: dict[str, str] = {}
    if texts:
        key = _text_key(model, digests, dtype, tokenizers[0].model_max_length)
        keys = {caption: key(caption) for caption in captions}
    known = look_at(list(dict.fromkeys(e.file for e in (*examples, *class_examples))))
    frames = _Frames(config, model, digests, known)
    items = tuple(
        Item(
            variants=frames.of(e.file, frames.nearest(e.file)),
            text=keys.get(e.caption, e.caption),
        )
        for e in examples
    )
    small = _small(frames.made.values(), config)
    # A picture of the class is in a batch with one of the subject, whatever size that has.
    sizes = sorted({item.variants[0].size for item in items})
    class_items = tuple(
        Item(
            variants=tuple(v for size in sizes for v in frames.of(e.file, size)),
            text=keys.get(e.caption, e.caption),
        )
        for e in class_examples
    )
    return Needed(
        items=items,
        class_items=class_items,
        pictures=frames.made,
        texts=keys,
        remarks=(*_cut(tokenizers, captions), *small),
    )


class _Frames:
    """The frames of pictures; keeps what each one's entry is made of in `made`."""

    def __init__(self, config: DataConfig, model: Model, digests: WeightDigests,
                 known: Mapping[str, Picture]) -> None:  # fmt: skip
        self.made: dict[str, Framed] = {}
        self._config = config
        self._known = known
        self._sizes = _sizes(config, model)
        self._encoding = recipes.latents_encoding(
            interpolation=config.image_interpolation_mode,
            vae_digest=digests.digest(*model.weights("vae")),
            vae_config=model.config("vae"),
            dtype="fp32",
        )
        self.of = functools.cache(self._of)
        self._nearest = functools.cache(functools.partial(buckets.nearest, sizes=self._sizes))

    def nearest(self, file: str) -> Size:
        """Which of the run's sizes a picture is brought to."""
        return self._nearest(self._known[file].size)

    def _of(self, file: str, target: Size) -> tuple[Variant, ...]:
        config, picture = self._config, self._known[file]
        frames = framing.variants(
            picture.size,
            picture.digest,
            target=target,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            crops=config.crop_variants,
        )
        return tuple(self._variant(file, picture.digest, frame) for frame in frames)

    def _variant(self, file: str, digest: str, frame: Frame) -> Variant:
        key = recipes.latents_key(self._encoding, image_digest=digest, frame=frame)
        self.made[key] = Framed(file, digest, frame, self._config.image_interpolation_mode)
        return Variant(latents=key, time_ids=frame.time_ids)


def _sizes(config: DataConfig, model: Model) -> tuple[Size, ...]:
    """The sizes that pictures are brought to."""
    if not config.buckets:
        return ((config.resolution, config.resolution),)
    # What the VAE and then the UNet halve must stay whole.
    halvings = sum(len(model.config(part)["block_out_channels"]) - 1 for part in ("vae", "unet"))
    return buckets.table(config.resolution, 2**halvings)


def _text_key(
    model: Model, digests: WeightDigests, dtype: ms.Type, max_length: int
) -> Callable[[str], str]:
    encoders = [
        digests.digest(*model.weights(part), model.folder / part / "config.json")
        for part in ("text_encoder", "text_encoder_2")
    ]
    vocabularies = [digests.digest(model.folder / part) for part in ("tokenizer", "tokenizer_2")]

    encoding = recipes.text_encoding(
        tokenizer_digests=vocabularies,
        encoder_digests=encoders,
        max_length=max_length,
        dtype=sdxl.NAMES[dtype],
    )
    return lambda prompt: recipes.text_key(encoding, prompt=prompt)


def _cut(tokenizers: Sequence[Any], captions: Sequence[str]) -> list[str]:
    counters = [sdxl.token_counter(tokenizer) for tokenizer in tokenizers]
    room = tokenizers[0].model_max_length
    cut = [caption for caption in captions if any(count(caption) > room for count in counters)]
    # A line takes two tokenizations, and only the first ones are shown.
    told = [_too_long(tokenizers, caption) for caption in cut[: REMARKS_SHOWN + 1]]
    rest = cut[REMARKS_SHOWN + 1 :]
    return _shortened([*told, *rest], "{} more prompts are too long, and cut")


def _too_long(tokenizers: Sequence[Any], prompt: str) -> str:
    cuts = [sdxl.too_long(tokenizer, prompt) for tokenizer in tokenizers]
    cut = max(filter(None, cuts), key=len, default="")
    return (
        f"the prompt is longer than the {tokenizers[0].model_max_length} tokens that the model "
        f"takes; this is cut off: {cut!r}"
    )


def _small(made: Iterable[Framed], config: DataConfig) -> list[str]:
    """A line for each picture that is smaller than it should be."""
    least = config.min_image_size
    told = {}
    for framed in made:
        height, width = framed.frame.original_size
        shape = f"{framed.file} is {width} pixels wide and {height} high"
        if least is not None and min(height, width) < least:
            told[framed.file] = f"{shape}: less than --min_image_size {least}"
        elif least is None and framed.frame.enlarges:
            rows, columns = framed.frame.size
            told[framed.file] = (
                f"{shape}, and is enlarged for {columns} by {rows}: that trains blur"
            )
    return _shortened(list(told.values()), "{} more pictures are as small")


def _shortened(lines: list[str], rest: str) -> list[str]:
    if len(lines) <= REMARKS_SHOWN + 1:
        return lines
    return [*lines[:REMARKS_SHOWN], rest.format(len(lines) - REMARKS_SHOWN)]
