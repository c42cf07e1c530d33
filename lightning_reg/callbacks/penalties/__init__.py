"""Terms of the objective.

`formula` says what a term is, `base` how it reaches the weights, `run` what it knows during one fit. `targets` are the
weights as optimizers hold them, `proximal_step` and `quota` belong to the step after the optimizer's, `refusals` says
what cannot work. The penalties themselves: `elementwise`, `group_lasso`; `target_sparsity` chooses the strength of one.
"""
