"""Share the missing entries among all ranks and jobs, each to be encoded once. For precompute.

A `Filling` is iterated, maybe in a thread ahead of who encodes; each key that it yields has been
claimed. A rank begins with its own share and goes through it forwards, then helps with the others'
from behind, where their owners are last. At the end it waits for what others are still encoding,
and takes that over if they die.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from .cache import Store
from .claims import Claims

LOOK_SECONDS = 1.0
LOOKING_SHARE = 0.05  # of the time, at most, where looking takes long
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 2.0
WAIT_SHARE = 0.1  # of the time that was waited before: nothing is noticed much later than it could


class Filling:
    """The keys that this process is to encode.

    share, of: which of how many processes this is that were given the same keys. check: called
    often; raises to end the iteration.
    """

    def __init__(
        self,
        keys: Sequence[str],
        store: Store,
        claims: Claims,
        *,
        share: int,
        of: int,
        check: Callable[[], None],
    ) -> None:
        order = walk(list(dict.fromkeys(keys)), share=share, of=of)
        self._store, self._claims, self._check = store, claims, check
        self._total = len(order)
        self._given: set[str] = set()
        # Keys without an entry when last looked, in order. Two threads look: under the lock.
        self._left = dict.fromkeys(order)
        self._next_look = 0.0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        waited = 0.0
        while left := self._look(now=True):
            found = False
            for key in tuple(left):  # `release` changes it meanwhile
                if key in self._look() and key not in self._given and self._take(key):
                    found, waited = True, 0.0
                    yield key
            if not found:
                self._check()
                pause = min(max(SHORTEST_WAIT, WAIT_SHARE * waited), LONGEST_WAIT)
                time.sleep(pause)
                waited += pause

    def release(self, key: str) -> None:
        """Tell that a key's entry has been published."""
        self._claims.release(self._store.path(key))
        with self._lock:
            self._left.pop(key, None)

    @property
    def done(self) -> int:
        """How many of the keys have an entry, whoever encoded it; at most a second old."""
        return self._total - len(self._look())

    def _take(self, key: str) -> bool:
        """Claim it, unless somebody has, or has encoded it since the last look."""
        self._check()
        path = self._store.path(key)
        if not self._claims.take(path):
            return False
        if not self._store.missing([key]):
            self.release(key)
            return False
        self._given.add(key)
        return True

    def _look(self, *, now: bool = False) -> dict[str, None]:
        """The keys without an entry, looked up anew where that was long ago."""
        with self._lock:
            start = time.monotonic()
            if now or start >= self._next_look:
                self._left = dict.fromkeys(self._store.missing(self._left))
                end = time.monotonic()
                self._next_look = end + max(LOOK_SECONDS, (end - start) / LOOKING_SHARE)
            return self._left


def walk(keys: Sequence[str], *, share: int, of: int) -> list[str]:
    """The keys in the order in which one of several processes tries them. Pure.

    >>> "".join(walk("abcdef", share=1, of=3))
    'cdbafe'
    """
    start, stop = len(keys) * share // of, len(keys) * (share + 1) // of
    return [*keys[start:stop], *reversed(keys[:start]), *reversed(keys[stop:])]
