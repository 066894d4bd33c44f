"""Errors raised by `flows`: bad input is a `ValueError` whose message names the argument."""


class FlowInputError(ValueError):
    """An argument is outside what was expected; the message names it and says what was."""


class OverlapError(FlowInputError):
    """What was sampled and what is asked for overlap too little for any estimate."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and where the checkpoint is."""


class NonfiniteError(TrainingError):
    """Too many points or gradients have no finite value, also after training was rolled back."""


class ProcessLostError(RuntimeError):
    """Another process of the run has ended."""
