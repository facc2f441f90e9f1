"""The errors of this room that are no mistake of options or input (that is config.ConfigError).

Each is told in one line, with status 1.
"""


class NeverFinite(ArithmeticError):  # noqa: N818 - what happened
    """An update whose gradients stay infinite whatever the loss scale."""


class Unreachable(OSError):  # noqa: N818 - what happened
    """The hub or the network failed, which may be over at another time."""
