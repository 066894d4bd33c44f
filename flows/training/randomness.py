"""Every generator that a training step may draw from, as one state."""

import random

import numpy as np
import torch

from flows.state import State


def random_state(generator: torch.Generator) -> State:
    """Return the state of `generator`, and of the global ones that someone's loss may use."""
    name, keys, *place = np.random.get_state(legacy=True)
    version, words, spare = random.getstate()
    # Of the GPU in use: asking every one would begin a context, and take memory, on each.
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if on_gpu else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *place],
        "python": [version, list(words), spare],
    }


def set_random_state(state: State, generator: torch.Generator) -> None:
    """Go on with what `random_state` returned; a GPU that is not here is left out."""
    generator.set_state(state["generator"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *place = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *place))
    version, words, spare = state["python"]
    random.setstate((version, tuple(words), spare))
