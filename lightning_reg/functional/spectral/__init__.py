"""Spectral norms.

`norms` has the public functions: exact norms of `matrices`; upper bounds of convolutions by `frequencies`, from the
norms that `responses` finds on a grid, and of large matrices by `certificates`; lower estimates for any linear map by
`lanczos`. `convolution` is a convolution with its adjoint, `layers` are weights as linear maps, and `estimates` are
lower estimates for many layers, each continued from the last one.

The room `followed` follows the norms of layers in training. `batches` are many matrices of one shape.

`matrix_terms` are sums over layers of a function of each one's matrix: `nuclear`, `orthogonality`. `low_rank` replaces
layers of low rank with two smaller ones.
"""
