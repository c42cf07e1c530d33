"""Terms of an objective: `norms`, `concave` and `group_lasso`; `counts` of zeros; `activity` of modules.

Their kernels: `elementwise` sums with their gradient in place, and `group_sums`.
"""
