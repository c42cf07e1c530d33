"""The norms of layers.

`penalty` penalizes large norms. `normalization` holds them at a bound, in `normalized` weights, and `constraint` at a
bound or below. `control` decides when these two act, and `weights` treats weights as layers. `matrix_penalty` is the
base of penalties on the matrix of each layer: `nuclear_norm` makes its rank low, `orthogonal` its rows orthonormal.
"""
