"""Penalty terms: `norms`, `concave`, `group_lasso`, and `activity` of modules. Also `counts` of zeros.

The kernels: `elementwise` sums with an in-place gradient, and `group_sums`.
"""
