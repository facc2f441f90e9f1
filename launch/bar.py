"""The bar at the foot of a terminal: a heartbeat -> one line, in tqdm's look. Pure.

`follow.Terminal` draws it. tqdm itself draws no bar here: it would want to own the lines above.
"""

from __future__ import annotations

from .heartbeats import Beat


def line(beat: Beat, now: float, columns: int) -> str:
    """What rank 0 is at, at most `columns` wide; `now` by the clock of the beat.

    Between the things that are counted on the way to the first update, that is the phase.
    """
    from tqdm import tqdm  # 80 ms, spent only where a bar is shown

    if not beat.what or (beat.done >= beat.total and beat.updates is None):
        return f"{beat.phase} [{tqdm.format_interval(now - beat.time)}]"[:columns]
    seconds = beat.time - beat.since
    return tqdm.format_meter(
        n=beat.done,
        total=beat.total,
        elapsed=now - beat.since,
        rate=(beat.done - beat.first) / seconds if seconds > 0 else None,
        ncols=columns,
        prefix=beat.what,
        unit=beat.unit,
        postfix=", ".join(f"{name}={value}" for name, value in beat.figures.items()),
    )
