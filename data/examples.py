"""A folder of pictures to a tuple of examples, in an order that is the same on every host.

Only names are looked at here; a picture is opened by `images.py`. What is not a picture is passed
over and listed, so that the caller can say so once: a stray `.DS_Store` must not end a run, and
a caption file that is silently ignored must not look as if it had been read.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .avif .jp2 .ppm .pgm".split()  # noqa: SIM905
)
# Camera and phone formats that people expect to work; Pillow does not decode them.
UNREAD_PHOTOS = (
    ".heic .heif .dng .raw .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .jxl".split()  # noqa: SIM905
)
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Example:
    image: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder gave. `passed_over` holds names, a folder's with a slash behind it."""

    folder: Path
    examples: tuple[Example, ...]
    passed_over: tuple[str, ...]

    @property
    def remark(self) -> str | None:
        """One line about what was passed over, for the log; None if nothing was."""
        if not self.passed_over:
            return None
        return (
            f"passed over in {self.folder}: {_named(self.passed_over)}{_advice(self.passed_over)}"
        )


def from_folder(folder: Path, *, caption: str, repeats: int = 1) -> Listing:
    """List the pictures directly in `folder`, each `repeats` times, all with the same caption."""
    if repeats < 1:
        raise DataError(f"repeats is {repeats}: a picture is used at least once, pass 1 or more")
    names = _names(folder)
    pictures = [name for name in names if _is_picture(name)]
    passed_over = tuple(name for name in names if not _is_picture(name))
    if not pictures:
        raise DataError(_nothing_in(folder, passed_over))
    examples = (Example(image=folder / name, caption=caption) for name in pictures)
    return Listing(
        folder=folder,
        examples=tuple(example for example in examples for _ in range(repeats)),
        passed_over=passed_over,
    )


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name + "/" * entry.is_dir() for entry in entries]
    except FileNotFoundError as err:
        raise DataError(f"the picture folder {folder} does not exist: check the path") from err
    except NotADirectoryError as err:
        raise DataError(f"{folder} is a file: pass the folder that holds the pictures") from err
    except OSError as err:
        raise DataError(
            f"the picture folder {folder} cannot be listed ({err.strerror}): check its permissions"
        ) from err
    return sorted(names, key=_natural)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key: `dog2` before `dog10`, letters without case, and never by the locale of a host."""
    pieces = re.split(r"([0-9]+)", name.lower())
    # The split alternates text and digits, so equal places always hold equal types.
    key: list[str | int] = list(pieces)
    key[1::2] = [int(digits) for digits in pieces[1::2]]
    return key, name


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(tuple(SUFFIXES))


def _nothing_in(folder: Path, found: Sequence[str]) -> str:
    if not found:
        return f"the picture folder {folder} is empty: put pictures in it, or check the path"
    return (
        f"no picture in {folder}, only {_named(found)}. Read are {' '.join(SUFFIXES)}"
        f"{_advice(found)}{_deeper(folder, found)}"
    )


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _advice(names: Sequence[str]) -> str:
    photos = [name for name in names if name.lower().endswith(tuple(UNREAD_PHOTOS))]
    if not photos:
        return ""
    kinds = ", ".join(sorted({Path(name).suffix.lower() for name in photos}))
    return f". {kinds} cannot be read: export {_named(photos)} as JPEG or PNG"


def _deeper(folder: Path, names: Sequence[str]) -> str:
    """Point at the first subfolder that does hold pictures: the usual reason for an empty list."""
    for name in names:
        if name.endswith("/") and not name.startswith("."):
            inside = folder / name
            try:
                count = sum(_is_picture(child) for child in os.listdir(inside))
            except OSError:
                continue  # a hint only: what cannot be listed has nothing to offer
            if count:
                return f". Subfolders are not searched; {inside} holds {count}: pass that folder"
    return ""
