"""What a run needs from the cache: the keys of pictures' latents and of prompts' embeddings.

`plan()` reads pictures' bytes and headers, at most once for each picture ever, and no pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Models(NamedTuple):
    """Digests of what makes entries, and the VAE's configuration; where no embeddings are needed,
    without those of what makes them."""

    vae: str
    vae_config: Mapping[str, Any]
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a run needs from the cache.

    items: one an example; class_items: one a class example. buckets: the examples of each size that
    occurs. pictures: all their variants by key; `interpolation` is how these are resized. texts:
    prompt -> key; none for text encoders in training, and an item's text is its caption then.
    models: which these keys are for. remarks: what the user should know about prompts and pictures.
    """

    items: tuple[Item, ...]
    class_items: tuple[Item, ...]
    buckets: tuple[tuple[int, ...], ...]
    pictures: Mapping[str, Variant]
    interpolation: str
    texts: Mapping[str, str]
    models: Models
    remarks: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """All keys, in the same order on every rank."""
        return [*self.pictures, *self.texts.values()]


def models_of(model: Model, digests: WeightDigests, *, texts: bool) -> Models:
    """As they are now. Weights are read, unless their digests are remembered."""
    encoders, vocabularies = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")
    return Models(
        vae=digests.digest(*model.weights("vae")),
        vae_config=model.config("vae"),
        text_encoders=tuple(
            digests.digest(*model.weights(part), model.folder / part / "config.json")
            for part in encoders
            if texts
        ),
        tokenizers=tuple(digests.digest(model.folder / part) for part in vocabularies if texts),
    )


def plan(examples: Sequence[Example], class_examples: Sequence[Example], prompts: Sequence[str],
         config: DataConfig, model: Model, digests: WeightDigests, dtype: ms.Type, *,
         texts: bool, look_at: Looker) -> Needed:  # fmt: skip
    """Keys of everything that the examples, and further prompts, need.

    texts: whether embeddings are needed too.
    """
    tokenizers = sdxl.load_tokenizers(model)
    captions = list(dict.fromkeys([*prompts, *(e.caption for e in (*examples, *class_examples))]))
    models = models_of(model, digests, texts=texts)
    keys: dict[str, str] = {}
    if texts:
        key = _text_key(models, dtype, tokenizers[0].model_max_length)
        keys = {caption: key(caption) for caption in captions}
    known = look_at(list(dict.fromkeys(e.file for e in (*examples, *class_examples))))
    frames = _Frames(config, model, models, known)
    items = _items(examples, keys, lambda file: frames.of(file, [frames.nearest(file)]))
    small = _small(frames.made.values(), config)
    sized = buckets.by_size([item.variants[0].frame.size for item in items])
    # A picture of the class is in a batch with one of the subject, whatever size that has.
    sizes = sorted(items[some[0]].variants[0].frame.size for some in sized)
    return Needed(
        items=items,
        class_items=_items(class_examples, keys, lambda file: frames.of(file, sizes)),
        buckets=sized,
        pictures=frames.made,
        interpolation=config.image_interpolation_mode,
        texts=keys,
        models=models,
        remarks=(*_cut(tokenizers, captions), *small),
    )


def _items(
    examples: Sequence[Example],
    keys: Mapping[str, str],
    variants_of: Callable[[str], tuple[Variant, ...]],
) -> tuple[Item, ...]:
    # A file may be that of several examples.
    variants = {file: variants_of(file) for file in dict.fromkeys(e.file for e in examples)}
    return tuple(Item(variants[e.file], keys.get(e.caption, e.caption)) for e in examples)


class _Frames:
    """The variants of pictures; keeps all by key in `made`."""

    def __init__(self, config: DataConfig, model: Model, models: Models,
                 known: Mapping[str, Picture]) -> None:  # fmt: skip
        self.made: dict[str, Variant] = {}
        self._config = config
        self._known = known
        self._sizes = _sizes(config, model)
        self._encoding = recipes.latents_encoding(
            interpolation=config.image_interpolation_mode,
            vae_digest=models.vae,
            vae_config=models.vae_config,
            dtype="fp32",
        )
        self._nearest = functools.cache(functools.partial(buckets.nearest, sizes=self._sizes))

    def nearest(self, file: str) -> Size:
        """Which of the run's sizes a picture is brought to."""
        return self._nearest(self._known[file].size)

    def of(self, file: str, targets: Sequence[Size]) -> tuple[Variant, ...]:
        config, (digest, size) = self._config, self._known[file]
        made = []
        for target in targets:
            for frame in framing.variants(
                size,
                digest,
                target=target,
                center_crop=config.center_crop,
                random_flip=config.random_flip,
                crops=config.crop_variants,
            ):
                key = recipes.latents_key(self._encoding, image_digest=digest, frame=frame)
                variant = Variant(latents=key, frame=frame, file=file, digest=digest)
                self.made[key] = variant
                made.append(variant)
        return tuple(made)


def _sizes(config: DataConfig, model: Model) -> tuple[Size, ...]:
    """The sizes that pictures are brought to."""
    if not config.buckets:
        return ((config.resolution, config.resolution),)
    # What the VAE and then the UNet halve must stay whole.
    halvings = sum(len(model.config(part)["block_out_channels"]) - 1 for part in ("vae", "unet"))
    return buckets.table(config.resolution, 2**halvings)


def _text_key(models: Models, dtype: ms.Type, max_length: int) -> Callable[[str], str]:
    encoding = recipes.text_encoding(
        tokenizer_digests=models.tokenizers,
        encoder_digests=models.text_encoders,
        max_length=max_length,
        dtype=sdxl.NAMES[dtype],
    )
    return lambda prompt: recipes.text_key(encoding, prompt=prompt)


def _cut(tokenizers: Sequence[Any], captions: Sequence[str]) -> list[str]:
    counters = [sdxl.token_counter(tokenizer) for tokenizer in tokenizers]
    room = tokenizers[0].model_max_length
    cut = [caption for caption in captions if any(count(caption) > room for count in counters)]
    return _shortened(
        cut, "{} more prompts are too long, and cut", lambda prompt: _too_long(tokenizers, prompt)
    )


def _too_long(tokenizers: Sequence[Any], prompt: str) -> str:
    cuts = [sdxl.too_long(tokenizer, prompt) for tokenizer in tokenizers]
    cut = max(filter(None, cuts), key=len, default="")
    return (
        f"the prompt is longer than the {tokenizers[0].model_max_length} tokens that the model "
        f"takes; this is cut off: {cut!r}"
    )


def _small(made: Iterable[Variant], config: DataConfig) -> list[str]:
    """A line for each picture that is smaller than it should be."""
    least = config.min_image_size
    if least is None:
        small = {one.file: one.frame for one in made if one.frame.enlarges}
    else:
        small = {one.file: one.frame for one in made if min(one.frame.original_size) < least}
    return _shortened(
        list(small),
        "{} more pictures are as small",
        lambda file: _too_small(file, small[file], least),
    )


def _too_small(file: str, frame: Frame, least: int | None) -> str:
    (height, width), (rows, columns) = frame.original_size, frame.size
    shape = f"{file} is {width} pixels wide and {height} high"
    if least is not None:
        return f"{shape}: less than --min_image_size {least}"
    return f"{shape}, and is enlarged for {columns} by {rows}: that trains blur"


def _shortened(found: Sequence[str], rest: str, line: Callable[[str], str]) -> list[str]:
    """A line for each of them, or for the first ones with how many more there are."""
    if len(found) <= REMARKS_SHOWN + 1:
        return [line(one) for one in found]
    return [*map(line, found[:REMARKS_SHOWN]), rest.format(len(found) - REMARKS_SHOWN)]
