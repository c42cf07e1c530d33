"""Penalty terms: `norms` and `group_lasso`. Also `counts` of zeros.

The kernels: `elementwise` sums with an in-place gradient, and `group_sums`.
"""
