"""What a piece of work costs the processor, told alike in a short and in a long test session."""

import gc
import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Best of a few runs. The collector rests: its rounds grow with all that the session holds."""
    gc.collect()
    gc.disable()
    try:
        return min(_once(work) for _ in range(repeats))
    finally:
        gc.enable()


def _once(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
