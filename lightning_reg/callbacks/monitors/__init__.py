"""Monitors log the effects of regularization to TensorBoard and every other logger.

`base` is the common base. `regularization` and `lipschitz` decide when to measure, `regularization_run` and
`lipschitz_run` measure. `updates` computes how far steps move weights. `lipschitz_target` finds the function to bound,
`certificate` the certified accuracy from its bounds. `dashboard` writes what TensorBoard needs once, `picture` draws
for the other loggers.
"""
