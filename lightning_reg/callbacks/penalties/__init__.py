"""Terms of the objective.

`formula` says what a term is, `memory` what it remembers of weights, `attributes` what a user's keeps by itself, `base`
how it reaches the weights, `run` what it knows during one fit, `company` what all penalties do together, and `ledger`
what is logged of them. `targets` are the weights as optimizers hold them, `dropped` tells batches that the user left
out. `proximal_step` and `quota` belong to the step after the optimizer's, `rounding` warns where it has no effect, and
`optimality` tells how far from a minimum it begins. `refusals` says what cannot work. The penalties themselves:
`elementwise`, `concave`, `anchor`, `group_lasso`; `target_sparsity` chooses the strength of one. `activity` is a term
of what modules return, which `listener` hears.
"""
