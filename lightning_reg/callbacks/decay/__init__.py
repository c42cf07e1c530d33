"""Weight decay as a callback: `weight_decay` decides when weights shrink, `run` holds the state of one fit.

`kinds` computes the share of a step from the learning rate, `refusals` refuses what decay cannot work with.
"""
