"""Dropout over time, and predictions under many masks.

`sites` finds the modules that hold a rate: `rates` decides which attributes are rates, `held` where a module keeps
them. `source` and its `dataflow` read the code of `forward`, and `unreached` finds dropout that no schedule can set.
`behaviour` finds remaining randomness with two passes, whose random numbers are `extremes`, and `rest` warns of it.
`scheduler` sets rates with its `run`, `compile` turns them into data, `changes` follows the user's changes of the
model. `monte_carlo` predicts with the `sampler`, in modules that are `samplable`.
"""
