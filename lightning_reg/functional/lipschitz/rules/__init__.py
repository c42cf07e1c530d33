"""Who knows the bound of which operation: each file below registers the rules of one kind in `registry`.

`applied` makes a bound of a rule's answer.
"""

import lightning_reg.functional.lipschitz.rules.activations
import lightning_reg.functional.lipschitz.rules.arithmetic
import lightning_reg.functional.lipschitz.rules.layers
import lightning_reg.functional.lipschitz.rules.moves
import lightning_reg.functional.lipschitz.rules.pooling  # noqa: F401  # each registers its rules
