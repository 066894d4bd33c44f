"""python -m runs.bench: what a training step costs, beside other packages and the hardware."""
