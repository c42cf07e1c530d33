"""The seam to Lightning, and what all callbacks share.

`packages` is Lightning, whichever of its two packages users import, and `state` reads the running trainer. `during_fit`
is the base of what lives for one fit; `guarded_steps` of what acts inside optimizer steps, by `step_hooks`, on
`held_weights`, and refuses `unseen_steps`; `sharing` tells who may change one weight together. `timetable` is a
schedule within a run, `refusals` say no before training. `settings` reads what a callback was built with, `plan` shows
what will be done, with like layers in one row by `folding`, and `decays` who decays which weight; `loggers` writes it
down. `nested` finds tensors in whatever a step takes and returns, `unobserved` makes a step that nobody sees.
"""
