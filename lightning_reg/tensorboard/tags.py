"""The tags under which everything is logged. They are part of the public interface.

TensorBoard groups tags by what stands before the first slash: `reg/` holds the few numbers of the whole network,
`reg.<metric>/` one number for each layer.
"""

import re

CERTIFIED_ACCURACY = "reg/certified_accuracy"
DECAY_RATIO = "decay_ratio"
DECAYS = "reg/setup_decayed_by"
DECAY_SETUP = "reg/setup_decay"
DROPOUT = "reg/dropout"
DROPOUT_SETUP = "reg/setup_dropout"
LAYERS = "reg.layers"
LIPSCHITZ_GAP = "reg/lipschitz_gap"
LIPSCHITZ_LOG10 = "reg/lipschitz_log10"
LIPSCHITZ_LOWER = "reg/lipschitz_lower"
LIPSCHITZ_UPPER = "reg/lipschitz_upper"
MC_DROPOUT = "reg/mc_dropout"
PENALTY = "reg/penalty"
PENALTY_RATIO = "reg/penalty_ratio"
SETUP = "reg/setup"
SPECTRAL_SETUP = "reg/setup_spectral"
TARGET_SPARSITY = "reg/target_sparsity"
UPDATE_RATIO = "update_ratio"
WEIGHT_DECAY = "reg/weight_decay"

TAKEN = (
    "certified_accuracy",
    "decay_ratio",
    "dropout",
    "lipschitz",
    "lipschitz_gap",
    "lipschitz_log10",
    "lipschitz_lower",
    "lipschitz_upper",
    "mc_dropout",
    "penalty",
    "penalty_ratio",
    "setup",
    "setup_decay",
    "setup_decayed_by",
    "setup_dropout",
    "setup_spectral",
    "target_sparsity",
    "update_ratio",
    "weight_decay",
    "weights",
)
"""Names that no metric of a user may have: two kinds of data under one tag make TensorBoard show neither."""

PAGE = "lightning_reg_page"
"""The name of the page "Regularization" in TensorBoard: the owner of what stands at `LAYERS`."""
PER_LAYER = re.compile(r"((?P<prefix>.*?)-)??reg\.(?P<metric>[\w.-]+)/(?P<layer>.+)", re.DOTALL)
"""A tag made by `per_layer`, with the prefix that a logger may put before it."""
OVERALL = re.compile(r"((?P<prefix>.*?)-)??reg/(?P<name>\w+)", re.DOTALL)
"""A tag of one number for the whole network, with the prefix."""


def overall(metric: str) -> str:
    """Return the tag of a metric of all layers together."""
    return f"reg/{metric}"


def over_layers(metric: str, statistic: str) -> str:
    """Return the tag of a statistic of a metric over the layers: `"min"`, `"median"`, `"max"`."""
    return f"reg/{metric}_{statistic}"


def spread(metric: str) -> str:
    """Return the tag of the histogram of a metric over the layers."""
    return f"reg/{metric}_over_layers"


def per_layer(metric: str, layer: str) -> str:
    """Return the tag of a metric of one layer."""
    return f"reg.{metric}/{layer}"


def weights(layer: str) -> str:
    """Return the tag of the histogram of a layer's weights."""
    return per_layer("weights", layer)
