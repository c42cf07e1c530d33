"""The norms of layers.

`penalty` makes large norms cost, `normalization` and `constraint` hold them at a bound; `control` says when those two
act, `weights` what of a weight acts as a layer.
"""
