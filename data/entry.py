"""One cache entry as bytes: safetensors with its key, a note of what it was made of, a checksum.

The checksum covers names, types, shapes, values and all metadata, so no byte of a file can change
unnoticed. Pure: bytes in, bytes out; `cache.py` owns the files.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Tensors = Mapping[str, NDArray[Any]]

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


class Damaged(Exception):  # noqa: N818 - a state of the file, which is answered by encoding again
    """The bytes are not the entry that was published under this key."""


def pack(key: str, tensors: Tensors, note: Mapping[str, str]) -> bytes:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content: bytes = save(whole, metadata=_metadata(key, whole, dict(note)))
    return content


def unpack(key: str, content: bytes, *, verify: bool) -> dict[str, NDArray[Any]]:
    """The tensors, as read-only views of `content`. Raises `Damaged`."""
    header, start = _header(content)
    metadata = header.pop("__metadata__", None)
    try:
        about = json.loads(metadata[_OURS])
        if about["key"] != key:
            raise Damaged(f"it is the entry of {about['key']}")
        note = about["note"]
    except (KeyError, TypeError, ValueError) as err:
        raise Damaged("it is not an entry of this cache") from err
    try:
        tensors = {name: _view(content, start, about) for name, about in header.items()}
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise Damaged(f"its tensors do not fit the file ({err})") from err
    if len(content) != start + sum(tensor.nbytes for tensor in tensors.values()):
        raise Damaged(f"it is too short or too long ({len(content)} bytes)")
    if verify and metadata != _metadata(key, tensors, note):
        raise Damaged("its checksum does not match")
    return tensors


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The JSON at the front and where the tensors begin."""
    if len(content) < 8:
        raise Damaged(f"it is cut short ({len(content)} bytes)")
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise Damaged("its header is cut short, or it is another kind of file")
    try:
        header = json.loads(content[8 : 8 + length].decode("ascii"))
    except (ValueError, RecursionError) as err:
        raise Damaged("its header is not readable") from err
    if not isinstance(header, dict):
        raise Damaged("its header is not readable")
    return header, 8 + length


def _view(content: bytes, start: int, about: dict[str, Any]) -> NDArray[Any]:
    dtype = _TYPES[about["dtype"]]
    begin, end = about["data_offsets"]
    shape = tuple(about["shape"])
    count, left = divmod(end - begin, dtype.itemsize)
    if left or not 0 <= begin <= end <= len(content) - start:
        raise ValueError(f"bytes {begin} to {end}")
    flat = np.frombuffer(content, dtype, count=count, offset=start + begin)
    return flat.reshape(shape)


def _metadata(key: str, tensors: Tensors, note: Mapping[str, str]) -> dict[str, str]:
    digest = hashlib.sha256(json.dumps([key, note], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, _NAMES[tensor.dtype], tensor.shape]).encode())
        digest.update(tensor.data)
    about = {"key": key, "note": note, "sha256": digest.hexdigest()}
    # One field, because safetensors writes several in an order that changes from call to call.
    return {_OURS: json.dumps(about, sort_keys=True)}
