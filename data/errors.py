"""The one error of this room: about pictures or the cache, and for the user to put right."""


class DataError(ValueError):
    """Says what was asked, what was found and what to do; one line, no traceback."""
