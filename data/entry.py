"""One cache entry as bytes: safetensors with its key, a note of what it was made of, a checksum.

The checksum covers names, types, shapes, values and all metadata, so no byte of a file can change
unnoticed. Pure: bytes in, bytes out; `cache.py` owns the files.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Tensors = Mapping[str, NDArray[Any]]
Content = bytes | memoryview  # which cannot be written to
Part = tuple[str, np.dtype[Any], tuple[int, ...], int]  # name, type, shape, first byte
Layout = tuple[Part, ...]

_OURS = "mindbooth"
_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


LARGEST = 1 << 30  # bytes: what is longer is no entry, and would fill the memory


class Damaged(Exception):  # noqa: N818 - a state of the file, which is answered by encoding again
    """The bytes are not the entry that was published under this key."""


def pack(key: str, tensors: Tensors, note: Mapping[str, str]) -> bytes:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content: bytes = save(whole, metadata=_metadata(key, whole, dict(note)))
    return content


def verify(key: str, content: Content) -> Layout:
    """Where the tensors lie in `content`. Raises `Damaged` if that is not the entry of `key`, as it
    was packed."""
    header, start = _header(content)
    metadata = header.pop("__metadata__", None)
    try:
        about = json.loads(metadata[_OURS])
        if about["key"] != key:
            raise Damaged(f"it is the entry of {about['key']}")
        note = about["note"]
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        raise Damaged("it is not an entry of this cache") from err
    try:
        layout = tuple(_part(name, about, start) for name, about in header.items())
        tensors = views(content, layout)
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise Damaged(f"its tensors do not fit the file ({err})") from err
    if len(content) != start + sum(tensor.nbytes for tensor in tensors.values()):
        raise Damaged(f"it is too short or too long ({len(content)} bytes)")
    if metadata != _metadata(key, tensors, note):
        raise Damaged("its checksum does not match")
    return layout


def views(content: Content, layout: Layout) -> dict[str, NDArray[Any]]:
    """The tensors, as read-only views of `content`, which has been verified."""
    return {
        name: np.ndarray(shape, dtype, buffer=content, offset=first)
        for name, dtype, shape, first in layout
    }


def _header(content: Content) -> tuple[dict[str, Any], int]:
    """The JSON at the front and where the tensors begin."""
    if len(content) < 8:
        raise Damaged(f"it is cut short ({len(content)} bytes)")
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise Damaged("its header is cut short, or it is another kind of file")
    try:
        header = json.loads(bytes(content[8 : 8 + length]).decode("ascii"))
    except (ValueError, RecursionError) as err:
        raise Damaged("its header is not readable") from err
    if not isinstance(header, dict):
        raise Damaged("its header is not readable")
    return header, 8 + length


def _part(name: str, about: dict[str, Any], start: int) -> Part:
    dtype, shape = _TYPES[about["dtype"]], tuple(about["shape"])
    begin, end = about["data_offsets"]
    if begin < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"bytes {begin} to {end}")
    return name, dtype, shape, start + begin


def _metadata(key: str, tensors: Tensors, note: Mapping[str, str]) -> dict[str, str]:
    digest = hashlib.sha256(json.dumps([key, note], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, _NAMES[tensor.dtype], tensor.shape]).encode())
        digest.update(tensor.data)
    about = {"key": key, "note": note, "sha256": digest.hexdigest()}
    # One field, because safetensors writes several in an order that changes from call to call.
    return {_OURS: json.dumps(about, sort_keys=True)}
