"""What a part of a run remembers from step to step, so that a checkpoint can hold it."""

from typing import Any

from flows.flow import Flow

State = dict[str, Any]


class Stateful:
    """A part of a stage: by default it remembers nothing."""

    def state_dict(self) -> State:
        """Return tensors, numbers and containers of them: all that later steps depend on."""
        return {}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`.

        Args:
            state: What `state_dict` returned.
            flow: The flow in training, for parts that keep copies of it.
        """
