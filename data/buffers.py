"""Memory to read entries into, used again as soon as nothing refers to it.

Called by cache.py. Fresh memory costs more than reading: the kernel zeroes and maps each page at
its first touch, which for half a megabyte takes several times as long as copying the file into
pages that are there already (benchmarks/reading.py). Arrays made of a buffer keep it alive, as with
any other memory; the last of them to go hands it back.
"""

import mmap
import weakref
from collections import defaultdict, deque

import numpy as np

_IDLE = 8  # as many of one capacity are kept; a batch's worth of entries


class Buffers:
    """Safe to use from several threads: all that they share is popped and appended whole."""

    def __init__(self) -> None:
        self._idle: defaultdict[int, deque[mmap.mmap]] = defaultdict(lambda: deque(maxlen=_IDLE))

    def take(self, size: int) -> memoryview:
        """`size` bytes of any content, at the beginning of a page."""
        # Few capacities, so that entries of nearly the same size share; what is not touched of
        # one costs nothing.
        capacity = max(mmap.PAGESIZE, 1 << (size - 1).bit_length())
        idle = self._idle[capacity]
        try:
            memory = idle.pop()
        except IndexError:
            memory = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer = np.frombuffer(memory, np.uint8, count=size)
        weakref.finalize(buffer, idle.append, memory).atexit = False
        return buffer.data
