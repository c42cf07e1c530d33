"""A series of strengths in one fit.

`regularization_path` is the callback, `settings` its arguments, and `run` its state during a fit. `gradients` sums
gradients over an epoch: `largest` finds the largest strength from them, by `search`, which tells when an estimate
settles, and `solved` tells when a strength has had enough epochs. `extrapolation` is where the next one then starts.
`scores` reads the monitor, `snapshots` keeps the module at a strength, `points` notes what a strength has led to, and
`result` is what a path leaves behind. `relaxed` trains the choice on without the penalty. `checkpoint` is for resumed
fits, and `refusals` says what would cut a path.
"""
