"""Errors raised by `flows`: bad input is a `ValueError` whose message names the argument."""


class FlowInputError(ValueError):
    """An argument is outside what was expected; the message names it and says what was."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and where the checkpoint is."""
