"""Pictures as files: names that any prompt may have, and PNGs that say how they were made."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mindbooth.data.atomic import replace_file

LONGEST = 40  # letters; a name may have 255 bytes, and a letter four


def slug(prompt: str) -> str:
    """The prompt as a part of a file's name: letters of any script, digits and dashes."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    return re.sub(r"[\W_]+", "-", plain)[:LONGEST].strip("-") or "picture"


def slugs(prompts: Sequence[str]) -> list[str]:
    """One for each prompt, no two the same."""
    made = [slug(prompt) for prompt in prompts]
    if len(set(made)) == len(made):
        return made
    return [f"{number}-{name}" for number, name in enumerate(made, start=1)]


def unused(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """A file for each stem: `stem.png`, or all of them with the first number that is free."""
    number = 1
    while True:
        tail = "" if number == 1 else f"-{number}"
        paths = {stem: folder / f"{stem}{tail}.png" for stem in stems}
        if not any(path.exists() for path in paths.values()):
            return paths
        number += 1


def save(picture: Image.Image, path: Path, told: Mapping[str, str]) -> None:
    """Writes a PNG with `told` as its text, in UTF-8; whole, or not at all."""
    text = PngInfo()
    for name, value in told.items():
        text.add_itxt(name, value)
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=text)
    replace_file(path, content.getvalue())
