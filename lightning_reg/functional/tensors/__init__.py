"""Lists of tensors: `weights` as users pass them, `chunks` that fit a cache, `shards` over ranks, `precision`.

And `random` generators.
"""
