"""Rules that weights keep after each optimizer step.

`base` says when a rule is applied and to which weights, `run` what is known during one fit and how weights reach the
rule (units first, shards gathered, pruned entries left out), `refusals` what cannot share a weight with it. The rules:
`norms` of units, `signs` of entries, `zeros` that stay or come in a pattern.
"""
