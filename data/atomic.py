"""Put a file in place whole or not at all: written aside, flushed to the disk, then renamed.

A process that dies on the way leaves a file that `is_unfinished` tells by its name and that nobody
reads. Where the writer has an id (presence.py), the name carries it, so that what the dead left
can be told from what the living are writing:

    .name.<random>.part             by someone unknown
    .name.<writer>-<random>.part
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.(?:([0-9a-f]{16})-)?[0-9a-f]{16}\.part")


def is_unfinished(name: str) -> bool:
    """Whether a file of this name was still being written, by someone living or dead."""
    return _UNFINISHED.fullmatch(name) is not None


def unfinished_name(name: str, *, writer: str = "") -> str:
    """A name of its own for what will become, or is only there instead of, the file `name`."""
    mark = f"{writer}-" if writer else ""
    return f".{name}.{mark}{secrets.token_hex(8)}.part"


def writer_of(name: str) -> str | None:
    """Who was writing the unfinished file of this name; None if that is not known."""
    match = _UNFINISHED.fullmatch(name)
    return match and match[1]


def replace_file(path: Path, content: bytes, *, writer: str = "") -> None:
    """Write `content` to `path`, creating its folder; OSError leaves no trace but that folder.

    writer: the id of the writing process, 16 hexadecimal digits, where it has one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / unfinished_name(path.name, writer=writer)
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            # Else a host that crashes may leave the name with an empty file. It costs a millisecond
            # or less (benchmarks/reading.py), and what an entry is made of takes a hundred.
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
