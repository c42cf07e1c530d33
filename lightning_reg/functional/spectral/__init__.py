"""Spectral norms.

`norms` has the public functions: exact norms of `matrices`; upper bounds of convolutions by `frequencies`, from the
norms that `responses` finds on a grid, and of large matrices by `certificates`; lower estimates for any linear map by
`lanczos`. `convolution` is a convolution with its adjoint, `layers` are weights as linear maps, and `estimates` are
lower estimates for many layers, each continued from the last one.

`followed` also follows many layers: `followed_matrices` and `followed_convolutions` take the steps, in `subspaces` and
over `frequency_cells`; `batches` are many weights of one shape; `followed_gradient` is the gradient of the norms,
`followed_clipping` clips singular values above a bound, and `rooms` tell how far matrices may move before that is
needed again.

`matrix_terms` are sums over layers of a function of each one's matrix: `nuclear`, `orthogonality`. `low_rank` replaces
layers of low rank with two smaller ones.
"""
