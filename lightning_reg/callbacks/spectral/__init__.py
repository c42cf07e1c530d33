"""The norms of layers.

`penalty` penalizes large norms. `normalization` holds them at a bound, in `normalized` weights, and `constraint` at a
bound or below, in `projected` weights. `control` decides when these two act, `weights` treats weights as layers,
`step_norms` follows their norms, and `kept_state` keeps these for checkpoints. `matrix_penalty` is the base of
penalties on the matrix of each layer: `nuclear_norm` makes its rank low, `orthogonal` its rows orthonormal. `margin`
trains a classifier for certified radii, with its `logits` and the `margin_bound` from the norms of its layers.
"""
