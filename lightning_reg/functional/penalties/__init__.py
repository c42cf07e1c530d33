"""Penalty terms: `norms`, `concave`, `group_lasso`, `activity` of modules and `margin` of samples; `counts` of zeros.

The kernels: `elementwise` sums with an in-place gradient, and `group_sums`.
"""
