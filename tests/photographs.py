"""Photographs as people bring them: several sizes and formats, some turned, with an EXIF note.

They come from scikit-image's wheel. Every file, turned as its note says, shows the picture upright.
"""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from PIL.Image import Transpose

EXIF_ORIENTATION = 0x0112
# What a camera did to an upright picture, by the note it left: the reverse of what a reader does.
STORED = {
    1: (),
    2: (Transpose.FLIP_LEFT_RIGHT,),
    3: (Transpose.ROTATE_180,),
    4: (Transpose.FLIP_TOP_BOTTOM,),
    5: (Transpose.TRANSPOSE,),
    6: (Transpose.ROTATE_90,),
    7: (Transpose.TRANSVERSE,),
    8: (Transpose.ROTATE_270,),
}
# file, of which picture, its longer side (None: as it is), EXIF orientation
FILES = (
    ("astronaut.png", "astronaut.png", None, 1),
    ("cat.jpg", "chelsea.png", None, 6),
    ("cat-small.jpeg", "chelsea.png", 120, 2),
    ("coffee.jpg", "coffee.png", 480, 3),
    ("rocket.jpg", "rocket.jpg", None, 1),
    ("rocket-phone.JPG", "rocket.jpg", 200, 8),
)


def write_photographs(folder: Path) -> Path:
    """Fill FOLDER (made if missing) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source, longest, orientation in FILES:
        with Image.open(bundled() / source) as opened:
            upright = opened.convert("RGB")
        if longest is not None:
            upright.thumbnail((longest, longest))
        save_turned(upright, folder / name, orientation)
    return folder


def bundled() -> Path:
    spec = find_spec("skimage")
    assert spec is not None, "scikit-image is missing: install the extra 'compare'"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data"


def save_turned(upright: Image.Image, path: Path, orientation: int) -> None:
    stored = upright
    for method in STORED[orientation]:
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(path, quality=95, exif=exif)
