"""Monitors log the effects of regularization to TensorBoard and every other logger.

`base` is the common base. `regularization` and `lipschitz` decide when to measure; `regularization_run` and
`lipschitz_run` measure. `updates` computes how far optimizer steps move weights. `lipschitz_target` finds the function
to bound, and `certificate` computes its certified accuracy. `dashboard` writes the entries that TensorBoard needs once,
and `picture` draws for the other loggers.
"""
