"""Dropout over time, and predictions under many masks.

`sites` finds the modules that hold a rate: `rates` says what counts as one, `held` where a module keeps it. `source`
and its `dataflow` are what only the code of `forward` shows, `unreached` is what no schedule can set. `behaviour` asks
two passes what is still random, and `rest` says so. `scheduler` sets rates with its `run`; `compile` makes them data,
`changes` follows what the user changes. `monte_carlo` predicts with the `sampler`, where a module is `samplable`.
"""
