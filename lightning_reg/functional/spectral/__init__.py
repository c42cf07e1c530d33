"""Spectral norms.

`norms` are the public functions: exact ones of `matrices`, bounds from above of convolutions by `frequencies`, from the
norms that `responses` finds on a grid, and of large matrices by `certificates`, estimates from below of any linear map
by `lanczos`. `convolution` is one with its adjoint, `layers` are weights as linear maps, `estimates` are those of many
layers, each from where the last ended.

`followed` follows many layers, too: `followed_matrices` and `followed_convolutions` take the steps, in `subspaces`,
`followed_gradient` is the gradient of what they find, and `followed_clipping` takes off what is above a bound.

`matrix_terms` are sums over layers of a function of each one's matrix: `nuclear`, `orthogonality`. `low_rank` makes two
layers of one.
"""
