"""A folder of pictures and captions to a tuple of examples, in the same order on every host.

Only names are looked at, and captions read; a picture is opened by `images.py`. What is not used is
passed over and listed, so that the caller can say so once: a stray `.DS_Store` must not end a run,
and a caption file that is silently ignored must not look as if it had been read.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import captions
from .captions import Captions
from .errors import DataError

SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .avif .jp2 .ppm .pgm".split()  # noqa: SIM905
)
# Camera and phone formats that people expect to work; Pillow does not decode them.
UNREAD_PHOTOS = tuple(
    ".heic .heif .dng .raw .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .jxl".split()  # noqa: SIM905
)
_SHOWN = 8
_number = re.compile("[0-9]+")


class Example(NamedTuple):
    """file: of the picture. Not a `Path`, which takes five times the memory."""

    file: str
    caption: str

    @property
    def image(self) -> Path:
        return Path(self.file)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a folder or a dataset gave; `remark` is one line about it for the log, if need be."""

    examples: tuple[Example, ...]
    remark: str | None


def from_folder(
    folder: Path, *, caption: str, repeats: int = 1, own_captions: bool = True
) -> Listing:
    """List the pictures directly in `folder`, and those below it that its metadata names.

    A picture's caption is what the metadata says, else what stands in the text file beside it,
    else `caption`. Without `own_captions` all have `caption`, and no other file is looked at.
    """
    names = _names(folder)
    top = [name for name in names if is_picture(name)]
    found = captions.of_folder(folder, names, top) if own_captions else Captions()
    pictures = _in_order({*top, *found.named})
    if not pictures:
        raise DataError(_nothing_in(folder, _in_order(names)))
    passed_over = _in_order(names - found.used - set(pictures))
    within = os.path.join(folder, "")
    examples = (Example(within + name, found.own.get(name, caption)) for name in pictures)
    return Listing(
        examples=repeated(examples, repeats),
        remark=_remark(folder, len(pictures), found, passed_over),
    )


def repeated(examples: Iterable[Example], repeats: int) -> tuple[Example, ...]:
    """Each example `repeats` times, side by side."""
    if repeats < 1:
        raise DataError(f"repeats is {repeats}: a picture is used at least once, pass 1 or more")
    return tuple(example for example in examples for _ in range(repeats))


def _remark(folder: Path, pictures: int, found: Captions, passed_over: Sequence[str]) -> str | None:
    told = []
    if found.used:
        told.append(
            f"{len(found.own)} of {pictures} pictures in {folder} have captions of their own, "
            f"{pictures - len(found.own)} the instance prompt"
        )
    if found.empty:
        told.append(f"empty: {_named(found.empty)}")
    if passed_over:
        told.append(f"passed over in {folder}: {_named(passed_over)}{_advice(passed_over)}")
    return "; ".join(told) or None


def _names(folder: Path) -> set[str]:
    """All names in a folder, a folder's with a slash behind it."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name + "/" * is_folder(entry) for entry in entries}
    except FileNotFoundError as err:
        raise DataError(f"the picture folder {folder} does not exist: check the path") from err
    except NotADirectoryError as err:
        raise DataError(f"{folder} is a file: pass the folder that holds the pictures") from err
    except OSError as err:
        raise DataError(
            f"the picture folder {folder} cannot be listed ({err.strerror}): check its permissions"
        ) from err


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in a circle, or to where we may not look


def _in_order(names: Iterable[str]) -> list[str]:
    # By plain text first, which decides between names of one key.
    return sorted(sorted(names), key=_natural)


def _natural(name: str) -> str:
    """Sort key: `dog2` before `dog10`, letters without case, and never by the locale of a host."""
    return _number.sub(_by_length, name.lower())


def _by_length(number: re.Match[str]) -> str:
    # How long it is, in characters that come before all that names usually have.
    digits = number[0].lstrip("0")
    wholes, rest = divmod(len(digits), 31)
    return "\x1f" * wholes + chr(rest) + digits


def is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


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
    photos = [name for name in names if name.lower().endswith(UNREAD_PHOTOS)]
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
                count = sum(is_picture(child) for child in os.listdir(inside))
            except OSError:
                continue  # a hint only: what cannot be listed has nothing to offer
            if count:
                return f". Subfolders are not searched; {inside} holds {count}: pass that folder"
    return ""
