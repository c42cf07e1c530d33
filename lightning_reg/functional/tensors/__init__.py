"""Helpers for tensors: `weights` as users pass them, `chunks` that fit a cache, `shards` over ranks.

Also the `precision` of norms, and `random` generators.
"""
