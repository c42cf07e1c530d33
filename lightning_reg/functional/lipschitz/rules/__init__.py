"""Rules that bound operations. Each file below registers the rules of one kind in `registry`.

`applied` turns the answer of a rule into a bound.
"""

import lightning_reg.functional.lipschitz.rules.activations
import lightning_reg.functional.lipschitz.rules.arithmetic
import lightning_reg.functional.lipschitz.rules.attention
import lightning_reg.functional.lipschitz.rules.chosen
import lightning_reg.functional.lipschitz.rules.contractions
import lightning_reg.functional.lipschitz.rules.extents
import lightning_reg.functional.lipschitz.rules.forms
import lightning_reg.functional.lipschitz.rules.fused
import lightning_reg.functional.lipschitz.rules.gated
import lightning_reg.functional.lipschitz.rules.labels
import lightning_reg.functional.lipschitz.rules.layers
import lightning_reg.functional.lipschitz.rules.lengths
import lightning_reg.functional.lipschitz.rules.losses
import lightning_reg.functional.lipschitz.rules.matrices
import lightning_reg.functional.lipschitz.rules.moved_extents
import lightning_reg.functional.lipschitz.rules.moves
import lightning_reg.functional.lipschitz.rules.pooling
import lightning_reg.functional.lipschitz.rules.recurrent
import lightning_reg.functional.lipschitz.rules.reductions
import lightning_reg.functional.lipschitz.rules.resizing
import lightning_reg.functional.lipschitz.rules.sizes
import lightning_reg.functional.lipschitz.rules.transforms
import lightning_reg.functional.lipschitz.rules.writes  # noqa: F401  # each registers its rules
