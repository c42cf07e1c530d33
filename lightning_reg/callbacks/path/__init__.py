"""A series of strengths in one fit.

`regularization_path` holds the callback. `settings` checks its arguments, `refusals` rejects trainers that would stop
it early, and `run` holds its state during a fit. `course` moves from strength to strength. `gradients` averages
gradients over an epoch. From this mean, `largest` computes the largest strength, and `search` decides when the estimate
has converged. `solved` decides whether a strength has reached its minimum, and `extrapolation` predicts the first
weights of the next one. `scores` reads the monitor, `snapshots` copies the module, and `points` records each strength.
`result` is the object that users read. `relaxed` trains the best strength without the penalty at the end. `checkpoint`
saves and loads a path.
"""
