"""The norms of layers.

`penalty` penalizes large norms, `normalization` and `constraint` hold them at a bound. `control` decides when these two
act, and `weights` treats weights as layers. `matrix_penalty` is what penalties on the matrix of each layer
share: `nuclear_norm` makes its rank low, `orthogonal` its rows orthonormal.
"""
