"""Seeds that are made of parts, so that streams of random numbers do not meet."""

import random


def derived_seed(*parts: object) -> int:
    """Return a seed for torch, 63 bits, that depends on all `parts`; the same in every process."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)
