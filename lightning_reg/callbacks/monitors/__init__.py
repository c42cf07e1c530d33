"""What regularization did, for TensorBoard and every other logger.

`base` is what monitors share. `regularization` and `lipschitz` say when something is measured, `regularization_run` and
`lipschitz_run` what; `lipschitz_target` is the function that is bounded, `dashboard` what TensorBoard is told once.
"""
