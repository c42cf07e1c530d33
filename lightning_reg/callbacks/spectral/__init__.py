"""The norms of layers.

`penalty` penalizes large norms, `normalization` and `constraint` hold them at a bound. `control` decides when these two
act, and `weights` treats weights as layers.
"""
