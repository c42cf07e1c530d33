"""Bootstrap samples: rows drawn with replacement, as bagging gives one to each model."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler
from typing_extensions import override

from lightning_reg import _checks
from lightning_reg.functional.tensors.random import derived_seed


class BootstrapSampler(Sampler[int]):
    """Draw as many rows as there are, with replacement: the same rows in every epoch, in another order.

    A row is missing with probability :math:`(1 - 1/n)^n`, about 0.37. What is drawn is a function of `seed` and the
    epoch alone, so all processes draw the same, and each takes its share: Lightning wraps the sampler for that by
    itself. Lightning tells it the epoch, too; in a loop of your own call `set_epoch`, or every epoch has one order.

    Args:
        data: The data, or anything of its length.
        seed: Which sample, an int >= 0: one for each model.

    Raises:
        TypeError: If `data` has no length or is text, or `seed` is no int.
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
        """The rows of the sample, sorted; those that are not among them are out of bag."""
        return sorted(self._rows().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which fixes the order."""
        self.epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        # Another stream than that of the rows: the epoch is in its name.
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        yield from self._rows()[torch.randperm(self.size, generator=generator)].tolist()

    def __len__(self) -> int:
        """Return how many rows an epoch has."""
        return self.size

    def _rows(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derived_seed("rows", self.seed))
        return torch.randint(self.size, (self.size,), generator=generator)


def _count_rows(data: object) -> int:
    # A scalar tensor or array claims to have a length.
    if not isinstance(data, Sized) or isinstance(data, str | bytes) or getattr(data, "shape", None) == ():
        msg = f"`data` must have a length and be no text, got a {type(data).__name__}."
        raise TypeError(msg)
    if not len(data):
        msg = "`data` must hold at least one row, got none."
        raise ValueError(msg)
    return len(data)
