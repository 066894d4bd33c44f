"""Hydra configs: one group per noun."""
