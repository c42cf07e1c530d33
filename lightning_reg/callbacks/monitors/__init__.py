"""What regularization did, for TensorBoard and every other logger.

`base` is what monitors share. `regularization` and `lipschitz` say when something is measured, `regularization_run` and
`lipschitz_run` what. `updates` is how far steps move weights, `lipschitz_target` the function that is bounded,
`certificate` what its bounds make certain, and `dashboard` what TensorBoard is told once. `picture` is for the other
loggers.
"""
