"""Pure functions of tensors that need no Trainer. The `__all__` of each file lists its public names."""

from typing import TYPE_CHECKING

from lightning_reg.functional.lipschitz.bound import *
from lightning_reg.functional.lipschitz.certificates import *
from lightning_reg.functional.lipschitz.jacobian import *
from lightning_reg.functional.penalties.concave import *
from lightning_reg.functional.penalties.counts import *
from lightning_reg.functional.penalties.group_lasso import *
from lightning_reg.functional.penalties.norms import *
from lightning_reg.functional.proximal.concave import *
from lightning_reg.functional.proximal.elementwise import *
from lightning_reg.functional.proximal.groups import *
from lightning_reg.functional.spectral.low_rank import *
from lightning_reg.functional.spectral.norms import *

if not TYPE_CHECKING:
    __all__ = sorted(name for name, item in globals().items() if callable(item))
