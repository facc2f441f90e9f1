"""The error of this room that is no mistake of options or input (that is config.ConfigError)."""


class NeverFinite(ArithmeticError):  # noqa: N818 - what happened; told in one line, with status 1
    """An update whose gradients stay infinite whatever the loss scale."""
