"""Put a file in place whole or not at all: written aside, flushed to the disk, then renamed.

A process that dies on the way leaves a file that `is_unfinished` tells by its name and that
nobody reads.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.part")


def is_unfinished(name: str) -> bool:
    return _UNFINISHED.fullmatch(name) is not None


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, creating its folder; OSError leaves no trace but that folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
