"""The norms of layers in training, each followed from the subspace of the last step. Nothing waits for the device.

`norms` follows many layers at once: `matrices` and `convolutions` take the steps in `subspaces`, the latter over the
frequencies of `cells`. `gradient` is the gradient of the norms. `clipping` clips singular values above a bound, and
`rooms` tell how far matrices may move before that is needed again.
"""
