"""Rules that weights keep after each optimizer step.

`base` decides when a rule is applied and to which weights. `run` holds the state of one fit and prepares weights for
the rule (units first, shards gathered, pruned entries left out). `refusals` refuses conflicting callbacks. The rules:
`norms` of units, `signs` of entries, `zeros` that stay or form a pattern.
"""
