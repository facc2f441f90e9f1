"""The errors of this room."""


class DataError(ValueError):
    """About pictures or the cache, and for the user to put right.

    Says what was asked, what was found and what to do; one line, no traceback.
    """


class RankFailed(RuntimeError):  # noqa: N818 - what happened, to another than who raises it
    """Another rank of the run crashed; its own log says why."""


class RankStopped(Exception):  # noqa: N818 - not an error: what was asked for
    """Another rank of the run was asked to stop, before the first update."""
