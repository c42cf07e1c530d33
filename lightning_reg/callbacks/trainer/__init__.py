"""The seam to Lightning, and what all callbacks share.

`packages` is Lightning, whichever of its two packages users import, `state` reads the running trainer, `during_fit` is
the base of what lives for one fit, `step_hooks` act around optimizer steps, `refusals` say no before training,
`settings` reads what a callback was built with, `plan` shows what will be done, `loggers` writes it down, `nested`
finds tensors in whatever a step takes and returns.
"""
