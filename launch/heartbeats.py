"""The workers' heartbeats as their launcher sees them, and whether they tell of a hang.

A worker keeps the file `heartbeat_R` (trainer/heartbeat.py); a record that changes is a worker that
lives. `Watch` looks at those of one host; `stalled` judges, and is pure. Judged is who has begun to
count, entries say, and is not done with it, and all that comes after the first update. Downloading
a model or compiling a graph may take half an hour, and shows no sign of life.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

UPLOADING = "finish"  # the trainer's last phase: an upload, of any length, shows no sign of life
TRIES = 3  # at a record that is being written just now
HOSTS_APART_SECONDS = 3.0
LONGEST_LOOK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One record. phases: how many have begun, the same ones on every rank.

    what, unit, first, done, total, since, figures: what is being counted, or was last; `what` is
    empty before anything is. updates: how many are done; None before the first of this attempt.
    began: the checkpoints in the output folder are this run's. time: when it was written. Times are
    this host's monotonic clock.
    """

    phase: str
    phases: int
    what: str
    unit: str
    first: int
    done: int
    total: int
    since: float
    figures: Mapping[str, str]
    updates: int | None
    began: bool
    time: float

    @property
    def is_under_way(self) -> bool:
        """Whether it should get on. One that has counted to the end may wait for another host."""
        return self.updates is not None or self.first < self.done < self.total

    @property
    def reached(self) -> tuple[int, int]:
        """What grows while training gets on, comparable between ranks."""
        return self.phases, self.updates or 0

    def __str__(self) -> str:
        counted = f"{self.what} {self.done} of {self.total}" if self.what else ""
        phase = "" if self.phase == "updates" else self.phase
        return ", ".join(filter(None, (phase, counted)))


@dataclass(frozen=True, kw_only=True)
class Stall:
    """A hang: the rank that is most likely its cause, and what is known of every rank."""

    rank: int
    why: str


@dataclass(kw_only=True)
class Watch:
    """The heartbeats of this host's ranks.

    changed: when a rank's record was last seen to change, by `clock`: the seconds that this
    launcher has looked on. Time in which it could not, as in a job that is suspended as a whole,
    is no hang of a worker.
    """

    folder: Path
    ranks: tuple[int, ...]
    beats: dict[int, Beat | None] = field(default_factory=dict)
    changed: dict[int, float] = field(default_factory=dict)
    clock: float = 0.0
    looked: float | None = None

    def look(self, now: float) -> None:
        """Bring it up to date. `now` is in seconds."""
        if self.looked is not None:
            self.clock += min(now - self.looked, LONGEST_LOOK_SECONDS)
        self.looked = now
        seen = read(self.folder, self.ranks)
        for rank in self.ranks:
            if rank not in self.changed or seen[rank] != self.beats[rank]:
                self.changed[rank] = self.clock
        self.beats = seen

    def stall(self, stopped: Collection[int], hang_seconds: float) -> Stall | None:
        """Judge what was seen. stopped: ranks whose process a signal has stopped."""
        return stalled(self.beats, stopped, self.changed, self.clock, hang_seconds)


def read(folder: Path, ranks: Iterable[int]) -> dict[int, Beat | None]:
    """Read the ranks' records; None for one that is not there, or no record."""
    return {rank: _read(folder / f"heartbeat_{rank}") for rank in ranks}


def _read(path: Path) -> Beat | None:
    for _ in range(TRIES):
        try:
            beat = parse(path.read_bytes())
        except OSError:
            return None
        if beat is not None:
            return beat
    return None


def parse(record: bytes) -> Beat | None:
    """Read a record's first line; None if it is none, or not whole."""
    try:
        return Beat(**json.loads(record.partition(b"\n")[0]))
    except (ValueError, TypeError):
        return None


def stalled(
    beats: Mapping[int, Beat | None],
    stopped: Collection[int],
    changed: Mapping[int, float],
    now: float,
    hang_seconds: float,
) -> Stall | None:
    """Judge whether all of these ranks stand still; `hang_seconds` of 0 says that none ever does.

    The rank to blame is one that is stopped, else the one that is the least far. Where all are
    equally far, the cause may be on another host, which is to speak first: we wait a little longer.
    """
    known = {rank: beat for rank, beat in beats.items() if beat is not None}
    if not hang_seconds or not any(beat.is_under_way for beat in known.values()):
        return None
    if any(beat.phase == UPLOADING for beat in known.values()):
        return None
    quiet = now - max(changed[rank] for rank in known)
    reached = {rank: beat.reached for rank, beat in known.items()}
    culprits = sorted(stopped)
    if not culprits and len(set(reached.values())) > 1:
        culprits = [min(reached, key=reached.__getitem__)]
    if quiet <= hang_seconds + (0 if culprits else HOSTS_APART_SECONDS):
        return None
    told = "; ".join(
        f"rank {rank}: {'stopped (SIGSTOP) in ' * (rank in stopped)}{beat}, "
        f"{now - changed[rank]:.0f} s ago"
        for rank, beat in known.items()
    )
    rank = culprits[0] if culprits else min(known, key=lambda rank: changed[rank])
    return Stall(rank=rank, why=f"nothing has moved for {quiet:.0f} s ({told})")
