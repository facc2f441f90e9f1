"""What makes cache entries: the VAE and the text encoders, each loaded when it is first needed.

Used by `precompute.fill` in a run's beginning, and by the repair of an entry that was lost while
training. They leave memory with the object that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from PIL import Image

from mindbooth.data import images
from mindbooth.data.batches import Variant
from mindbooth.data.digests import WeightDigests, image_digest
from mindbooth.data.errors import DataError

from . import sdxl
from .needed import Needed, models_of
from .sdxl import Model

Entry = dict[str, np.ndarray]


class Pixels:
    """A key's framed picture, (3, H, W) in [-1, 1]; None for a prompt's key.

    Keeps the last picture that it decoded: the frames of one picture come one after the other.
    """

    def __init__(self, needed: Needed) -> None:
        self._needed = needed
        self._last: tuple[str, Image.Image] | None = None

    def __call__(self, key: str) -> np.ndarray | None:
        variant = self._needed.pictures.get(key)
        if variant is None:
            return None
        return images.render(
            self._decoded(variant), variant.frame, interpolation=self._needed.interpolation
        )

    def _decoded(self, variant: Variant) -> Image.Image:
        if self._last is None or self._last[0] != variant.digest:
            self._last = None  # one at a time: a picture may take half a gigabyte
            path = Path(variant.file)
            picture = images.load(path)
            if image_digest(path) != variant.digest:
                raise DataError(
                    f"the picture {path} was changed during the run, or is another one on another "
                    "host: start again, and where hosts have folders of their own, with the same "
                    "pictures"
                )
            self._last = (variant.digest, picture)
        return self._last[1]


class Encoders:
    """Key -> (entry, note): what is to be published. pixels: as `Pixels` gives them.

    Raises DataError if the model is no longer the one that the keys are for.
    """

    def __init__(
        self, needed: Needed, model: Model, dtype: ms.Type, digests: WeightDigests
    ) -> None:
        self._needed, self._model, self._dtype, self._digests = needed, model, dtype, digests
        self._prompts = {key: prompt for prompt, key in needed.texts.items()}

    def __call__(self, key: str, pixels: np.ndarray | None) -> tuple[Entry, Mapping[str, str]]:
        return self._text(key) if pixels is None else self._latents(key, pixels)

    def _latents(self, key: str, pixels: np.ndarray) -> tuple[Entry, Mapping[str, str]]:
        path, vae = Path(self._needed.pictures[key].file), self._model.vae
        entry = sdxl.moments(self._vae, pixels)
        if not _finite(entry):
            raise DataError(
                f"the VAE {vae} makes non-finite latents of {path}: try a better one with "
                "--pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix"
            )
        return entry, {"picture": path.name, "vae": vae.name}

    def _text(self, key: str) -> tuple[Entry, Mapping[str, str]]:
        prompt = self._prompts[key]
        entry = self._text_encoders.encode(prompt)
        if not _finite(entry):
            raise DataError(f"the text encoders make non-finite embeddings of {prompt!r}")
        return entry, {"prompt": prompt}

    @cached_property
    def _vae(self) -> nn.Cell:
        vae = sdxl.load_vae(self._model)
        self._check()
        return vae

    @cached_property
    def _text_encoders(self) -> sdxl.TextEncoders:
        encoders = sdxl.TextEncoders(self._model, self._dtype)
        self._check()
        return encoders

    def _check(self) -> None:
        """That what was just loaded is what the keys are for."""
        planned = self._needed.models
        texts = bool(planned.text_encoders)
        now = models_of(self._model, self._digests, texts=texts)
        if now != planned:
            vae_stays = (now.vae, now.vae_config) == (planned.vae, planned.vae_config)
            folder = self._model.folder if vae_stays else self._model.vae
            raise DataError(f"the model {folder} was changed during the run: start again")


def _finite(entry: Mapping[str, Any]) -> bool:
    return all(np.isfinite(tensor).all() for tensor in entry.values())
