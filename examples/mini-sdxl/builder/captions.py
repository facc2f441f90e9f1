"""Scene -> one of its many possible captions; colours and place are sometimes left unsaid.

A few captions carry a nonsense word before the figure ("xqv robot"), so that a rare token does not
break the picture; "sks", the demo's word, is never among them.
"""

import numpy as np

from .scenes import Scene, pick

PREFIXES = [
    *["a photo of"] * 6,
    "a picture of",
    "an image of",
    "a close photo of",
    "a good photo of",
    *["", ""],
]
PLACE_WORDS = {
    "grass": ["on grass", "on the grass", "on green grass"],
    "night": ["at night", "under the stars at night"],
    "bucket": ["in a bucket", "in a {c} bucket", "in a {c} bucket"],
    "stripes": ["on a striped floor", "on a {c} striped floor"],
    "checker": ["on a checkered floor", "on a {c} checkered floor"],
    "beach": ["on the beach", "on a sandy beach"],
    "snow": ["in the snow", "on snow"],
    "wood": ["on a wooden table", "on a wooden floor"],
    "city": ["in the city", "with a city in the background"],
    "mountain": ["in the mountains", "with a mountain in the background"],
    "forest": ["in the forest", "in the jungle", "with trees in the background"],
    "rug": ["on a rug", "on a {c} rug", "on a {c} rug"],
    "water": ["in the water", "on water", "floating on water"],
    "solid": ["on a {c} background"] * 3 + ["{c} background", "in front of a {c} wall"],
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    noun = f"{scene.main} {scene.kind}" if rng.random() < 0.75 else scene.kind
    if rng.random() < 0.04:
        noun = f"{nonsense(rng)} {noun}"
    elif rng.random() < 0.9:
        noun = with_article(noun)
    else:
        noun = f"the {noun}"
    prefix = pick(rng, PREFIXES)
    if scene.is_blurry and rng.random() < 0.5:
        prefix = "a blurry photo of"
    text = f"{prefix} {noun}".strip()
    if scene.kind == "robot" and scene.main != scene.second and rng.random() < 0.4:
        text += f" with {with_article(str(scene.second))} head"
    if scene.hat and rng.random() < 0.85:
        text += f" wearing {with_article(str(scene.hat))} hat"
    if rng.random() < 0.87:
        words = pick(rng, PLACE_WORDS[scene.place])
        words = words.replace("a {c}", with_article(scene.ground))
        text += " " + words.replace("{c}", scene.ground)
    return text


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def nonsense(rng: np.random.Generator) -> str:
    while True:
        word = "".join(pick(rng, "bcdfghjklmnpqrstvwxyz") for _ in range(3))
        if word != "sks":
            return word
