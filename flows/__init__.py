"""Normalizing flows trained on an energy alone; knows no atom and no force field.

`flows.build` makes a flow, `flows.flow` says what it can do, and `flows.training` fits it: a
proposal draws `flows.types.Samples`, a loss scores them, a path says which target is aimed at.
"""
