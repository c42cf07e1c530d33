"""The optimizer's weight decay, owned: `weight_decay` says when weights shrink, `run` what is known during one fit.

`kinds` are the ways in which the share of a step follows from the learning rate, `refusals` says what cannot work.
"""
