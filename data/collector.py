"""The garbage collector, kept from walking what a run plans while it is made.

Plans hold no cycles, and of 100,000 pictures they are half a million objects to look through: doing
that again and again takes a fifth of the time in which they are made (benchmarks/listing.py).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_rest() -> Iterator[None]:
    """Inside the `with`, or in a function that it decorates, nothing is collected."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
