"""The norms of layers.

`penalty` makes large norms cost, `normalization` and `constraint` hold them at a bound; `control` says when those two
act, `weights` what of a weight acts as a layer. `matrix_penalty` is what penalties on the matrix of each layer share:
`nuclear_norm` makes its rank low, `orthogonal` its rows orthonormal.
"""
