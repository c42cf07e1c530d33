"""The norms of layers.

`penalty` penalizes large norms, `normalization` and `constraint` hold them at a bound. `control` decides when these two
act, `weights` treats weights as layers, and `step_norms` follows their norms. `matrix_penalty` is what penalties on the
matrix of each layer share: `nuclear_norm` makes its rank low, `orthogonal` its rows orthonormal. `margin` trains a
classifier for certified radii, with its `logits` and the `margin_bound` from the norms of its layers.
"""
