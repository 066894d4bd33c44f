"""Every test starts from one seed, on one thread, and leaves torch's default dtype as it was."""

from collections.abc import Iterator

import pytest
import torch

# Tests use small tensors: more threads would only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
