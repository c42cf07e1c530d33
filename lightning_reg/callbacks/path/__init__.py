"""A series of strengths in one fit.

`regularization_path` is the callback, and `run` its state during a fit. `gradients` sums gradients over an epoch, and
`search` finds the largest strength from them. `scores` reads the monitor, `snapshots` keeps the module at a strength,
`result` is what a path leaves behind, and `refusals` says what would cut it.
"""
