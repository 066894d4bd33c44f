"""The commands: one Hydra entry point each, thin. The only place where molecules meet flows."""

import os

# A thread that waits for another one should not hold a core that the other one needs: on a busy
# machine the default of libgomp made a training step five times slower. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
