"""Dropout over time, and predictions under many masks.

`sites` finds the modules that hold a rate, `source` what only the source shows, `compile` makes rates data;
`scheduler` sets rates with its `run`, `monte_carlo` predicts with the `sampler`.
"""
