"""What determines the bytes of a cache entry, and the key made from it. Pure.

A recipe names everything that goes into an entry and nothing else: no path, no date, no rank. Two
runs with equal recipes share an entry; anything that changes the numbers must change the recipe.
What all entries of a run have in common, its encoding, stands there as one digest: then a hundred
thousand keys take a second. Raise `FORMAT` when the meaning of entries changes; older ones are then
never asked for again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from .framing import Frame
from .images import DECODER

FORMAT = 2

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
Recipe = Mapping[str, Value]

_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
).encode


def key(recipe: Recipe) -> str:
    """SHA-256, in hex, of the recipe as canonical JSON together with the format's number."""
    text = _canonical({"format": FORMAT, "recipe": recipe})
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def latents_encoding(
    *, interpolation: str, vae_digest: str, vae_config: Mapping[str, Value], dtype: str
) -> str:
    """A digest of how pictures become latents. dtype: what the VAE computes in."""
    return key(
        {
            "kind": "latents",
            "decoder": DECODER,
            "interpolation": interpolation,
            "vae": vae_digest,
            # Loaders add underscored fields of their own, such as the path that was loaded from.
            "vae_config": {name: value for name, value in vae_config.items() if name[0] != "_"},
            "dtype": dtype,
        }
    )


def latents_key(encoding: str, *, image_digest: str, frame: Frame) -> str:
    """Of an entry with `mean` and `std`, each (4, h, w).

    Numbers and digests need no JSON, and of this there are a hundred thousand before a run.
    """
    _, (rows, columns), flip, top, left, (height, width) = frame
    places = f"{rows}, {columns}, {top}, {left}, {height}, {width}, {flip:d}"
    line = f"latents {encoding} {image_digest} ({places})"
    return hashlib.sha256(line.encode("ascii")).hexdigest()


def text_encoding(
    *,
    tokenizer_digests: Sequence[str],
    encoder_digests: Sequence[str],
    max_length: int,
    dtype: str,
) -> str:
    """A digest of how prompts become embeddings. Digests in pipeline order."""
    return key(
        {
            "kind": "text",
            "tokenizers": tokenizer_digests,
            "encoders": encoder_digests,
            "max_length": max_length,
            "dtype": dtype,
        }
    )


def text_key(encoding: str, *, prompt: str) -> str:
    """Of an entry with `prompt_embeds` (L, D) and `pooled` (P,)."""
    return key({"encoding": encoding, "prompt": prompt})
