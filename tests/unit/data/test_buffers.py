"""Memory is used again when nothing refers to it, and never before."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mindbooth.data.buffers import Buffers


def floats(buffers: Buffers, value: float, count: int = 3000) -> NDArray[np.float32]:
    array = np.frombuffer(buffers.take(4 * count), np.float32)
    array[:] = value
    return array


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 524_688, 1 << 20])
def test_a_buffer_has_the_size_that_was_asked_for(size: int) -> None:
    assert len(Buffers().take(size)) == size


def test_what_is_held_is_not_written_over() -> None:
    buffers = Buffers()
    held = [floats(buffers, value) for value in range(40)]
    assert [set(array) for array in held] == [{value} for value in range(40)]


def test_memory_is_used_again_when_its_last_array_is_gone() -> None:
    buffers = Buffers()
    first = floats(buffers, 1)
    address = first.ctypes.data
    del first
    assert floats(buffers, 2, count=2900).ctypes.data == address


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[7:9],
        lambda array: array.reshape(2, -1).T,
        lambda array: memoryview(array)[:5],
        lambda array: array.view(np.uint8)[1:],
        lambda array: iter(array),
    ],
)
def test_any_view_keeps_its_memory(part: object) -> None:
    buffers = Buffers()
    array = floats(buffers, 1)
    address = array.ctypes.data
    view = part(array)  # type: ignore[operator]
    del array
    gc.collect()
    assert floats(buffers, 2).ctypes.data != address
    del view
    assert floats(buffers, 3).ctypes.data == address


def test_threads_do_not_share_a_buffer() -> None:
    buffers = Buffers()

    def write_and_look(value: int) -> bool:
        array = floats(buffers, value, count=100_000)
        return bool((array == value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_look, range(2000)))


def test_little_is_kept_of_what_is_no_longer_used() -> None:
    buffers = Buffers()
    before = resident_bytes()
    held = [floats(buffers, 1, count=1 << 18) for _ in range(100)]
    assert resident_bytes() > before + (80 << 20)
    held.clear()
    assert resident_bytes() < before + (20 << 20)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
