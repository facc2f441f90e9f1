"""The folder of class images: what is there, what is missing, and what was made with what.

Any picture in it counts, the user's own as well as those that were made. Of a picture that is made,
the number determines name and seed, so that it is the same one whichever rank, run or attempt makes
it. Its PNG text says what it was made with, for whoever changes the prompt and keeps the folder.
"""

import dataclasses
import errno
import io
import itertools
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import examples
from .atomic import replace_file
from .errors import DataError
from .examples import Listing

SECONDS_TO_SHOW = 90.0  # for so long may a network file system give an old listing of a folder
POLL_SECONDS = 0.2
_TEXT = "mindbooth"  # the keyword of our text in a PNG


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a picture is made with, beside its number."""

    prompt: str
    model: str
    resolution: int
    steps: int
    guidance: float


def name(number: int) -> str:
    return f"class-{number:05d}.png"


def check(folder: Path, *, instance: Path | None) -> None:
    """The folder is not that of the instance pictures, and is none or can be listed."""
    _pictures(folder)
    if instance is not None and folder.exists() and instance.exists() and folder.samefile(instance):
        raise DataError(
            f"--class_data_dir {folder} is --instance_data_dir too: the subject's pictures would "
            "count as pictures of the class. Give another folder"
        )


def missing(folder: Path, count: int) -> list[int]:
    """The numbers of the pictures to be made, so that there are `count`; all of them below it."""
    present = _pictures(folder)
    absent = (number for number in itertools.count() if name(number) not in present)
    return list(itertools.islice(absent, max(0, count - len(present))))


def listing(folder: Path, *, prompt: str, count: int) -> Listing:
    """The first `count` pictures by name, all with the class prompt."""
    found = examples.from_folder(folder, caption=prompt, own_captions=False)
    return dataclasses.replace(found, examples=found.examples[:count])


def remarks(folder: Path, *, count: int, origin: Origin) -> list[str]:
    """What the user should know about the pictures that are there, a line each."""
    names = sorted(_pictures(folder))
    told = []
    if len(names) > count:
        told.append(
            f"{folder} holds {len(names)} pictures: the first {count} by name are used "
            "(--num_class_images)"
        )
    origins = Counter(filter(None, (_origin(folder / name) for name in names)))
    for other, number in origins.items():
        if other != origin:
            told.append(
                f"{number} of the class images in {folder} were made with "
                f"{_difference(other, origin)}; they are used as they are. Delete them to have "
                "them made again, or give another --class_data_dir"
            )
    return told


def ensure_writable(folder: Path) -> None:
    """Fail early, before anything is loaded; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise _told(folder, err) from err


def write(folder: Path, number: int, picture: Image.Image, origin: Origin) -> None:
    """Put a picture in place whole, or not at all."""
    text = PngInfo()
    said = {**dataclasses.asdict(origin), "seed": number}
    text.add_text(_TEXT, json.dumps(said, ensure_ascii=False))
    content = io.BytesIO()
    picture.save(content, format="PNG", pnginfo=text)
    try:
        replace_file(folder / name(number), content.getvalue())
    except OSError as err:
        raise _told(folder, err) from err


def wait(folder: Path, count: int, *, seconds: float = SECONDS_TO_SHOW) -> None:
    """Return when the pictures can be seen here; they were all written before."""
    limit = time.monotonic() + seconds
    while unseen := missing(folder, count):
        if time.monotonic() > limit:
            raise DataError(
                f"{len(unseen)} of {count} class images don't show up in {folder}, though all "
                "ranks have made theirs: --class_data_dir must be one folder that all hosts share"
            )
        time.sleep(POLL_SECONDS)


def _pictures(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name
                for entry in entries
                if examples.is_picture(entry.name) and not examples.is_folder(entry)
            }
    except FileNotFoundError:
        return set()
    except OSError as err:
        raise _told(folder, err) from err


def _origin(path: Path) -> Origin | None:
    if path.suffix != ".png":
        return None
    try:
        with Image.open(path) as picture:
            said = json.loads(picture.info[_TEXT])
        del said["seed"]
        return Origin(**said)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError):
        return None  # somebody's own; what is damaged is told when its pixels are read


def _difference(other: Origin, origin: Origin) -> str:
    was, now = dataclasses.asdict(other), dataclasses.asdict(origin)
    return ", ".join(
        f"{what} {was[what]!r} (now {now[what]!r})" for what in was if was[what] != now[what]
    )


def _told(folder: Path, err: OSError) -> DataError:
    asked = f"--class_data_dir {folder}"
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{asked}: the disk is full ({err.strerror}). Free some space")
    if err.errno in (errno.ENOTDIR, errno.EEXIST):
        return DataError(f"{asked}: a file is in its place ({err.strerror}). Give a folder")
    return DataError(
        f"{asked} can't be used: {err.strerror}. Change its permissions, or give another folder"
    )
