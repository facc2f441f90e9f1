"""No byte of an entry can change unnoticed."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from mindbooth.data.entry import Damaged, pack, verify, views

KEY = "ab" * 32
TENSORS = {
    "mean": np.arange(12, dtype=np.float32).reshape(3, 4),
    "std": np.full((3, 4), 0.5, dtype=np.float16),
}
NOTE = {"image": "dog (1).jpg", "frame": "64x64"}
CONTENT = pack(KEY, TENSORS, NOTE)


def test_what_was_packed_comes_back() -> None:
    back = views(CONTENT, verify(KEY, CONTENT))
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert np.array_equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype
        assert not back[name].flags.writeable


def test_an_entry_is_ordinary_safetensors_that_tells_what_it_is_of() -> None:
    assert np.array_equal(load(CONTENT)["mean"], TENSORS["mean"])
    (length,) = np.frombuffer(CONTENT, "<u8", count=1)
    metadata = json.loads(CONTENT[8 : 8 + int(length)])["__metadata__"]
    about = json.loads(metadata["mindbooth"])
    assert about["key"] == KEY
    assert about["note"] == NOTE


def test_packing_is_deterministic() -> None:
    tensors, note = dict(reversed(TENSORS.items())), dict(reversed(NOTE.items()))
    assert {pack(KEY, tensors, note) for _ in range(50)} == {CONTENT}


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    for place in range(len(CONTENT)):
        flipped = bytearray(CONTENT)
        flipped[place] ^= 1 << bit
        with pytest.raises(Damaged):
            verify(KEY, bytes(flipped))


def test_every_truncation_is_noticed() -> None:
    for length in range(len(CONTENT)):
        with pytest.raises(Damaged):
            verify(KEY, CONTENT[:length])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 1000,
        b"\xff" * 1000,
        b"not a safetensors file at all, but some text",
        CONTENT + b"\x00",
        save({"mean": np.zeros(3, np.float32)}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"mindbooth": KEY}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"mindbooth": f'{{"key": "{KEY}"}}'}),
        save({"mean": np.zeros(3, np.float32)}, metadata={"mindbooth": "[" * 10**5}),
        pack("cd" * 32, TENSORS, NOTE),
    ],
)
def test_foreign_content_is_noticed(content: bytes) -> None:
    with pytest.raises(Damaged):
        verify(KEY, content)
