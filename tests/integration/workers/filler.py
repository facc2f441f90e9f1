"""A process that fills a cache, as `precompute` does, with a small encoder that starts at once.

    python filler.py PICTURES CACHE SHARE OF FIRST COUNT RECORD

It needs COUNT of the entries of `needed()`, from FIRST on, and writes the key of each one that it
has encoded, before publishing it, to the file RECORD.
"""

import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindbooth.data import images
from mindbooth.data.cache import Store
from mindbooth.data.claims import Claims
from mindbooth.data.digests import image_digest
from mindbooth.data.filling import Filling
from mindbooth.data.framing import Frame, frame
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.presence import Presence
from mindbooth.data.recipes import latents_encoding, latents_key

SIZES = (32, 40, 48, 56, 64, 72, 80, 88)
INTERPOLATION = "bilinear"
Framed = tuple[Path, Frame]


def needed(pictures: Path) -> dict[str, Framed]:
    """Key -> what the entry is made of: each picture in several sizes, as it is and flipped."""
    encoding = latents_encoding(
        interpolation=INTERPOLATION, vae_digest="block means", vae_config={}, dtype="fp32"
    )
    found = {}
    for path in sorted(pictures.iterdir()):
        digest, size = image_digest(path), images.probe(path)
        for target in SIZES:
            for flip in (False, True):
                framed = frame(size, target=(target, target), center_crop=True, flip=flip)
                key = latents_key(encoding, image_digest=digest, frame=framed)
                found[key] = (path, framed)
    return found


def pixels(framed: Framed) -> NDArray[np.float32]:
    """(3, H, W)"""
    path, how = framed
    return images.render(images.load(path), how, interpolation=INTERPOLATION)


def encode(picture: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Means and deviations of blocks of 8x8 pixels, (3, H/8, W/8)."""
    channels, height, width = picture.shape
    blocks = picture.reshape(channels, height // 8, 8, width // 8, 8)
    return {"mean": blocks.mean(axis=(2, 4)), "std": blocks.std(axis=(2, 4))}


def fill(root: Path, entries: dict[str, Framed], *, share: int, of: int, record: Path) -> None:
    over = threading.Event()

    def check() -> None:
        assert not over.is_set()

    with Presence(root) as presence, Claims(presence) as claims, record.open("a") as encoded:
        store = Store(root, writer=presence.id)
        presence.use(entries)
        filling = Filling(list(entries), store, claims, share=share, of=of, check=check)
        with Prefetch(lambda key: (key, pixels(entries[key])), filling) as ahead:
            try:
                for key, picture in ahead:
                    tensors = encode(picture)
                    print(key, file=encoded, flush=True)
                    store.publish(key, tensors, note={"picture": entries[key][0].name})
                    filling.release(key)
            finally:
                over.set()


if __name__ == "__main__":
    pictures, root, share, of, first, count, record = sys.argv[1:]
    everything = list(needed(Path(pictures)).items())
    mine = dict(everything[int(first) : int(first) + int(count)])
    print("ready", flush=True)
    sys.stdin.read(1)  # those of a test begin at the same moment
    fill(Path(root), mine, share=int(share), of=int(of), record=Path(record))
