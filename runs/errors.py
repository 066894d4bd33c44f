"""The error of commands, apart from them: what needs no torch can raise it."""


class CommandError(ValueError):
    """A command cannot do what was asked; the message says what was expected."""
