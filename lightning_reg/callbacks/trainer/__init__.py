"""The common base of all callbacks, and the interface to Lightning, whose private attributes only this room reads.

`packages` imports Lightning, from either of its two packages. `state` reads the running trainer, `progress` how far it
is, and `logged` what it logs. `during_fit` is the base of callbacks with state for one fit. `guarded_steps` is the base
of callbacks that act inside optimizer steps, with `step_hooks`, on `held_weights`; it refuses `unseen_steps`. `sharing`
decides which callbacks may change the same weight. `timetable` is a schedule within a run, and `refusals` raises before
training. `settings` reads the arguments of a callback, `plan` shows its actions, with similar layers in one row by
`folding`, and `decays` shows all weight decay; `loggers` writes to the loggers. `target` finds a module by its name,
and `labels` the classes of the samples of a batch. `nested` finds tensors in the arguments and outputs of a step,
`unobserved` makes a step without side effects.
"""
