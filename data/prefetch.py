"""Build items ahead in one background thread. Called by whoever consumes batches.

Items come in order; at most `depth` of them exist beyond the one in the consumer's hands. An error
surfaces in the consumer with the traceback of where it happened. The thread ends when the items do,
on `close()`, when the object is dropped, and at the interpreter's exit at the latest.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class _Made(Generic[T]):
    item: T


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


class Prefetch(Iterator[T]):
    """Iterate over `make(index)` for each index; also a context manager that closes."""

    def __init__(self, make: Callable[[S], T], indices: Iterable[S], *, depth: int = 2) -> None:
        assert depth > 0
        self._slots = threading.Semaphore(depth)
        self._queue: SimpleQueue[_Made[T] | _Ended] = SimpleQueue()
        stop = threading.Event()
        # The thread knows the parts and not this object, which can thus be dropped while it runs.
        thread = threading.Thread(
            target=_build,
            args=(make, iter(indices), self._slots, self._queue, stop),
            name="prefetch",
            daemon=True,
        )
        self._close = weakref.finalize(self, _stop, thread, self._slots, stop)
        thread.start()

    def __next__(self) -> T:
        if not self._close.alive:
            raise StopIteration
        message = self._queue.get()
        if isinstance(message, _Made):
            self._slots.release()
            return message.item
        self.close()
        if message.error is not None:
            raise message.error
        raise StopIteration

    def close(self) -> None:
        """End the thread, after the item that it is at; idempotent."""
        self._close()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _build(
    make: Callable[[S], T],
    indices: Iterator[S],
    slots: threading.Semaphore,
    queue: "SimpleQueue[_Made[T] | _Ended]",
    stop: threading.Event,
) -> None:
    error = None
    try:
        for index in indices:
            slots.acquire()
            if stop.is_set():
                break
            queue.put(_Made(make(index)))
    except BaseException as caught:
        error = caught
    # Also after a stop: a consumer that waits in another thread must wake up.
    queue.put(_Ended(error))


def _stop(thread: threading.Thread, slots: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    slots.release()
    if thread is not threading.current_thread():  # the collector may run in any thread
        thread.join()
