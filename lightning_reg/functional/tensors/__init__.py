"""Lists of tensors: `chunks` that fit a cache, `shards` over ranks, `precision`, and `random` generators."""
