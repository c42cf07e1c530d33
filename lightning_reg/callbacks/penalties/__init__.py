"""Terms of the objective.

`formula` defines a term, `memory` the tensors that it remembers for each weight, and `attributes` saves tensors in a
user's attributes. `base` brings a term to the weights, `run` holds its state during one fit, `company` coordinates all
penalties, and `ledger` logs them. `targets` are the weights as optimizers hold them, and `dropped` detects batches that
the user left out. `proximal_step` and `quota` take the step after the optimizer's, `rounding` warns if it has no
effect, and `optimality` measures the distance from a minimum before it. `refusals` raises for unsupported training. The
penalties themselves: `elementwise`, `concave`, `anchor`, `group_lasso`; `target_sparsity` chooses the strength of a
penalty. `outputs` is the base of terms of what modules return, which `listener` records; `activity` is one of them.
"""
