"""Entries of a cache for tests, and a hundred ways in which what lies in their place is none."""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from mindbooth.data.entry import pack

KEYS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(200)]
KEY = KEYS[0]
NOTE = {"picture": "dog.jpg"}
Damage = Callable[[Path], object]


def tensors(value: float = 1.0, size: int = 64) -> dict[str, NDArray[np.float32]]:
    return {"mean": np.full((4, size), value, np.float32), "std": np.ones((4, size), np.float32)}


def damages() -> Mapping[str, Damage]:
    """Done to the file of an entry that holds `tensors()`."""
    length = len(pack(KEY, tensors(), NOTE))
    start = length - sum(tensor.nbytes for tensor in tensors().values())  # of the tensors
    flips = [
        *(("header length", place) for place in range(8)),
        *(("header", int(place)) for place in np.linspace(8, start - 1, 26)),
        *(("tensors", int(place)) for place in np.linspace(start, length - 1, 26)),
    ]
    cuts = (0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, length // 2)
    return {
        **{f"flip in {region} at {at}": _flip(at, bit=at % 8) for region, at in flips},
        **{f"cut to {cut}": _cut(cut) for cut in (*cuts, length - 4, length - 1)},
        **{f"{len(more)} more bytes": _append(more) for more in (b"\0", b"text", bytes(length))},
        **{f"header {name}": _rewritten(header) for name, header in _HEADERS.items()},
        **{f"header length {number}": _length(number) for number in (0, length - 7, 2**64 - 1)},
        **{name: _instead(_writing(content)) for name, content in _FOREIGN.items()},
        **{name: _instead(make) for name, make in _NO_FILES.items()},
    }


_HEADERS = {
    "a list": b"[]",
    "deeply nested": b"[" * 5000,
    "no text": b"\xff\xfe\xfd",
    "another format's": b'{"mean": [0, 1]}',
}
_FOREIGN = {
    "text": b"kept here by someone else",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
    "safetensors": save(tensors()),
    "safetensors with metadata": save(tensors(), metadata={"mindbooth": "0.1"}),
    "another entry": pack("0" * 64, tensors(), NOTE),
}
_NO_FILES: dict[str, Damage] = {
    "an empty folder": Path.mkdir,
    "a folder with a file": lambda path: _file_inside(path),
    "a folder of folders": lambda path: (path / "one" / "two").mkdir(parents=True),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to its folder": lambda path: path.symlink_to("."),
    "a link to zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a folder of links": lambda path: path.symlink_to("/proc/self/fd"),
    "a named pipe": lambda path: os.mknod(path, stat.S_IFIFO | 0o600),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a link to what has no size": lambda path: path.symlink_to("/proc/self/status"),
}


def _file_inside(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("someone's")


def _flip(place: int, *, bit: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << bit
        path.write_bytes(content)

    return damage


def _cut(length: int) -> Damage:
    return lambda path: os.truncate(path, length)


def _append(more: bytes) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes() + more)


def _length(number: int) -> Damage:
    return lambda path: path.write_bytes(struct.pack("<Q", number) + path.read_bytes()[8:])


def _rewritten(header: bytes) -> Damage:
    return lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header)


def _writing(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def _instead(make: Damage) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage
