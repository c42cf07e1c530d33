"""Lightning callbacks.

The only list of public callbacks: the package's own names, the tests that walk all callbacks and the documentation read
it. A line added here makes a callback public everywhere.
"""

from typing import TYPE_CHECKING

from lightning_reg.callbacks.constraints.base import Constraint as Constraint
from lightning_reg.callbacks.constraints.norms import MaxNorm as MaxNorm
from lightning_reg.callbacks.constraints.norms import MinMaxNorm as MinMaxNorm
from lightning_reg.callbacks.constraints.norms import UnitNorm as UnitNorm
from lightning_reg.callbacks.constraints.signs import NonNegative as NonNegative
from lightning_reg.callbacks.constraints.zeros import KeepZeros as KeepZeros
from lightning_reg.callbacks.constraints.zeros import NMSparsity as NMSparsity
from lightning_reg.callbacks.decay.weight_decay import WeightDecay as WeightDecay
from lightning_reg.callbacks.dropout.monte_carlo import MonteCarloDropout as MonteCarloDropout
from lightning_reg.callbacks.dropout.scheduler import DropoutScheduler as DropoutScheduler
from lightning_reg.callbacks.monitors.lipschitz import LipschitzMonitor as LipschitzMonitor
from lightning_reg.callbacks.monitors.regularization import RegularizationMonitor as RegularizationMonitor
from lightning_reg.callbacks.path.regularization_path import RegularizationPath as RegularizationPath
from lightning_reg.callbacks.penalties.activity import ActivityPenalty as ActivityPenalty
from lightning_reg.callbacks.penalties.anchor import AnchorPenalty as AnchorPenalty
from lightning_reg.callbacks.penalties.base import Penalty as Penalty
from lightning_reg.callbacks.penalties.concave import MCPPenalty as MCPPenalty
from lightning_reg.callbacks.penalties.elementwise import ElasticNetPenalty as ElasticNetPenalty
from lightning_reg.callbacks.penalties.elementwise import L1Penalty as L1Penalty
from lightning_reg.callbacks.penalties.elementwise import L2Penalty as L2Penalty
from lightning_reg.callbacks.penalties.group_lasso import GroupLassoPenalty as GroupLassoPenalty
from lightning_reg.callbacks.penalties.target_sparsity import TargetSparsity as TargetSparsity
from lightning_reg.callbacks.spectral.constraint import SpectralConstraint as SpectralConstraint
from lightning_reg.callbacks.spectral.margin import MarginPenalty as MarginPenalty
from lightning_reg.callbacks.spectral.normalization import SpectralNormalization as SpectralNormalization
from lightning_reg.callbacks.spectral.nuclear_norm import NuclearNormPenalty as NuclearNormPenalty
from lightning_reg.callbacks.spectral.orthogonal import OrthogonalPenalty as OrthogonalPenalty
from lightning_reg.callbacks.spectral.penalty import SpectralNormPenalty as SpectralNormPenalty

if not TYPE_CHECKING:
    __all__ = sorted(name for name, item in globals().items() if isinstance(item, type))
