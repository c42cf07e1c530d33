"""The tags under which everything is logged. They are part of the public interface.

TensorBoard groups tags by what stands before the first slash: `reg/` holds the few numbers of the whole network,
`reg.<metric>/` one number for each layer.
"""

DROPOUT = "reg/dropout"
DROPOUT_SETUP = "reg/setup_dropout"
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

TAKEN = (
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
    "setup_dropout",
    "setup_spectral",
    "target_sparsity",
    "weights",
)
"""Names that no metric of a user may have: two kinds of data under one tag make TensorBoard show neither."""


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
