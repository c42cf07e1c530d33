"""Bootstrap samples for bagging: rows drawn with replacement, one sample for each model."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.tensors.random import derived_seed


class BootstrapSampler(Sampler[int]):
    """Draw n of n rows with replacement: the same rows in every epoch, in another order.

    A row is missing with probability :math:`(1 - 1/n)^n`, about 0.37. The sample depends on `seed` and the epoch only,
    so all processes draw the same one; Lightning then wraps the sampler to give each process its share. Lightning also
    sets the epoch. In your own training loop call `set_epoch`, because otherwise every epoch has the same order.

    Args:
        data: The data, or anything with its length.
        seed: The number of the sample, an int >= 0: use another one for each model.

    Raises:
        TypeError: If `data` has no length or is text, or `seed` is not an int.
        ValueError: If `data` is empty or `seed` negative.

    Example:
        >>> sampler = BootstrapSampler(range(5), seed=1)
        >>> len(list(sampler)), sorted(sampler) == sorted(sampler)
        (5, True)

    Reference:
        Breiman, Bagging Predictors, 1996, doi:10.1007/BF00058655.

    """

    def __init__(self, data: Sized, seed: int = 0) -> None:
        self.size = _count_rows(data)
        self.seed = _checks.count("seed", seed, 0)
        self.epoch = 0

    @property
    def rows(self) -> list[int]:
        """The rows of the sample, sorted; all other rows are out of bag."""
        return sorted(self._rows().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which fixes the order."""
        self.epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        # The stream differs from the stream of the rows, because the epoch is part of the seed.
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        yield from self._rows()[torch.randperm(self.size, generator=generator)].tolist()

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return self.size

    def _rows(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derived_seed("rows", self.seed))
        return torch.randint(self.size, (self.size,), generator=generator)


def _count_rows(data: object) -> int:
    # A scalar tensor or array claims to have a length.
    if not isinstance(data, Sized) or isinstance(data, str | bytes) or getattr(data, "shape", None) == ():
        msg = f"`data` must have a length and not be text, got a {type(data).__name__}."
        raise TypeError(msg)
    if not len(data):
        msg = "`data` must hold at least one row, got none."
        raise ValueError(msg)
    return len(data)
