"""The garbage collector, told what stays: called around what a run plans before it trains.

Plans hold no cycles, and of 100,000 pictures they are some 800,000 objects, which the collector
would walk again and again while they are made (a fifth of that time, benchmarks/listing.py), and
once more whenever it runs during the training.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """What is made inside the `with` stays for as long as the process: never looked through."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
