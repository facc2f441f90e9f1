"""Fills the cache with what this run needs: VAE latents of the pictures, embeddings of the prompts.

`plan()` says what is needed; `fill()` encodes this worker's share of what is missing and returns
when everything is there, whoever encoded it. The encoders are loaded only by a worker that has
something to encode, and leave memory with the function that loaded them.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from mindbooth.data import framing, images, recipes
from mindbooth.data.batches import Item, Variant
from mindbooth.data.cache import Store
from mindbooth.data.digests import WeightDigests, image_digest
from mindbooth.data.errors import DataError
from mindbooth.data.examples import Example
from mindbooth.data.framing import Frame
from mindbooth.data.meeting import Meeting

from . import device, sdxl
from .config import DataConfig
from .device import Comm
from .heartbeat import Heart
from .report import Progress
from .sdxl import Model

log = logging.getLogger(__name__)

REMARKS_SHOWN = 3  # of prompts that are cut


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One entry of latents to be made: a picture in a frame."""

    path: Path
    digest: str
    frame: Frame
    interpolation: str


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What a run needs from the cache.

    items: one an example; class_items: one a class example. pictures: cache key -> what the entry
    is made of. texts: prompt -> key; none for text encoders in training, and an item's text is its
    caption then. remarks: what the user should know about the prompts.
    """

    items: tuple[Item, ...]
    class_items: tuple[Item, ...]
    pictures: Mapping[str, Picture]
    texts: Mapping[str, str]
    remarks: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """All keys, in the same order on every rank."""
        return [*self.pictures, *self.texts.values()]


def plan(examples: Sequence[Example], class_examples: Sequence[Example], prompts: Sequence[str],
         config: DataConfig, model: Model, store: Store, dtype: ms.Type, *,
         texts: bool) -> Needed:  # fmt: skip
    """Keys of everything that the examples, and further prompts, need.

    texts: whether embeddings are needed too. Reads pictures' bytes and headers, no pixels.
    """
    digests = WeightDigests(store.root)
    tokenizers = sdxl.load_tokenizers(model)
    captions = list(dict.fromkeys([*prompts, *(e.caption for e in (*examples, *class_examples))]))
    remarks = list(filter(None, (_too_long(tokenizers, caption) for caption in captions)))
    if len(remarks) > REMARKS_SHOWN:
        remarks[REMARKS_SHOWN:] = [
            f"{len(remarks) - REMARKS_SHOWN} more prompts are too long, and cut"
        ]
    keys: dict[str, str] = {}
    if texts:
        key = _text_key(model, digests, dtype, tokenizers[0].model_max_length)
        keys = {caption: key(caption) for caption in captions}
    pictures: dict[str, Picture] = {}
    variants = _variants(config, model, digests, pictures)
    items, class_items = (
        tuple(Item(variants=variants(e.image), text=keys.get(e.caption, e.caption)) for e in some)
        for some in (examples, class_examples)
    )
    return Needed(
        items=items,
        class_items=class_items,
        pictures=pictures,
        texts=keys,
        remarks=tuple(remarks),
    )


def fill(needed: Needed, model: Model, store: Store, comm: Comm, meeting: Meeting, *,
         dtype: ms.Type, run_token: str, heart: Heart | None = None) -> None:  # fmt: skip
    """Encodes every `comm.size`-th missing entry, and waits for the others."""
    absent = set(store.missing(needed.keys, verify=True))
    mine = [key for key in needed.keys[comm.rank :: comm.size] if key in absent]
    if mine:
        store.ensure_writable()
        _encode(mine, needed, model, store, dtype, heart)
    store.wait(sorted(absent), run_token=run_token)
    meeting.at("encoded")
    made = int(comm.sum(np.array([len(mine)]))[0])
    if comm.rank == 0:
        _tell(made, len(needed.keys), store)


def _tell(made: int, total: int, store: Store) -> None:
    if made:
        log.info("Encoded %d of %d entries; the cache is %s.", made, total, store.root)
    else:
        log.info("Nothing to encode: all %d entries are in the cache %s.", total, store.root)


def repairer(needed: Needed, model: Model, store: Store, dtype: ms.Type) -> Callable[[str], None]:
    """Encodes one entry again, for one that was damaged or removed while training.

    Called in the thread that prepares batches, so it waits until no graph is running.
    """

    def again(key: str) -> None:
        with device.mode("pynative"):
            _encode([key], needed, model, store, dtype)

    return again


def _encode(keys: Sequence[str], needed: Needed, model: Model, store: Store, dtype: ms.Type,
            heart: Heart | None = None) -> None:  # fmt: skip
    makers: dict[str, Callable[[str], None]] = {}
    with Progress("encoding", len(keys), unit="entry", heart=heart) as progress:
        for key in keys:
            kind = "picture" if key in needed.pictures else "prompt"
            if kind not in makers:
                makers[kind] = (
                    _prompt_maker(needed, model, store, dtype)
                    if kind == "prompt"
                    else _picture_maker(needed, model, store)
                )
            makers[kind](key)
            progress.advance()
    makers.clear()
    gc.collect()


def _picture_maker(needed: Needed, model: Model, store: Store) -> Callable[[str], None]:
    vae = sdxl.load_vae(model)

    def make(key: str) -> None:
        picture = needed.pictures[key]
        path = picture.path
        pixels = images.render(
            images.load(path), picture.frame, interpolation=picture.interpolation
        )
        if image_digest(path) != picture.digest:
            raise DataError(f"the picture {path} was changed during the run: start again")
        entry = sdxl.moments(vae, pixels)
        if not all(np.isfinite(tensor).all() for tensor in entry.values()):
            raise DataError(
                f"the VAE {model.vae} makes non-finite latents of {path}: try a better one with "
                "--pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix"
            )
        store.publish(key, entry, note={"picture": path.name, "vae": model.vae.name})

    return make


def _prompt_maker(
    needed: Needed, model: Model, store: Store, dtype: ms.Type
) -> Callable[[str], None]:
    encoders = sdxl.TextEncoders(model, dtype)
    prompts = {key: prompt for prompt, key in needed.texts.items()}

    def make(key: str) -> None:
        prompt = prompts[key]
        entry = encoders.encode(prompt)
        if not all(np.isfinite(tensor).all() for tensor in entry.values()):
            raise DataError(f"the text encoders make non-finite embeddings of {prompt!r}")
        store.publish(key, entry, note={"prompt": prompt})

    return make


def _variants(config: DataConfig, model: Model, digests: WeightDigests,
              pictures: dict[str, Picture]) -> Callable[[Path], tuple[Variant, ...]]:  # fmt: skip
    """The frames of a picture; puts what their entries are made of into `pictures`."""
    vae_digest, vae_config = digests.digest(*model.weights("vae")), model.config("vae")

    @functools.cache
    def frames(path: Path) -> tuple[Variant, ...]:
        digest = image_digest(path)
        found = framing.variants(
            images.probe(path),
            digest,
            resolution=config.resolution,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
        )
        return tuple(one(path, digest, frame) for frame in found)

    def one(path: Path, digest: str, frame: Frame) -> Variant:
        interpolation = config.image_interpolation_mode
        key = recipes.key(
            recipes.latents_recipe(
                image_digest=digest,
                frame=frame,
                interpolation=interpolation,
                vae_digest=vae_digest,
                vae_config=vae_config,
                dtype="fp32",
            )
        )
        pictures[key] = Picture(path=path, digest=digest, frame=frame, interpolation=interpolation)
        return Variant(latents=key, time_ids=frame.time_ids)

    return frames


def _too_long(tokenizers: Sequence[Any], prompt: str) -> str | None:
    cuts = [sdxl.too_long(tokenizer, prompt) for tokenizer in tokenizers]
    cut = max(filter(None, cuts), key=len, default=None)
    return cut and (
        f"the prompt is longer than the {tokenizers[0].model_max_length} tokens that the model "
        f"takes; this is cut off: {cut!r}"
    )


def _text_key(
    model: Model, digests: WeightDigests, dtype: ms.Type, max_length: int
) -> Callable[[str], str]:
    encoders = [
        digests.digest(*model.weights(part), model.folder / part / "config.json")
        for part in ("text_encoder", "text_encoder_2")
    ]
    vocabularies = [digests.digest(model.folder / part) for part in ("tokenizer", "tokenizer_2")]

    def key(prompt: str) -> str:
        return recipes.key(
            recipes.text_recipe(
                prompt=prompt,
                tokenizer_digests=vocabularies,
                encoder_digests=encoders,
                max_length=max_length,
                dtype=sdxl.NAMES[dtype],
            )
        )

    return key
