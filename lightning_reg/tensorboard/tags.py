"""The tags under which everything is logged. They are part of the public interface.

TensorBoard groups tags by the part before the first slash: `reg/` holds the few numbers of the whole network,
`reg.<metric>/` one number for each layer.
"""

import hashlib
import re
from collections.abc import Sequence

ACTIVITY_SETUP = "reg/setup_activity"
CERTIFIED_ACCURACY = "reg/certified_accuracy"
CONSTRAINT_SETUP = "reg/setup_constraints"
DECAY_RATIO = "decay_ratio"
DECAYS = "reg/setup_decayed_by"
DECAY_SETUP = "reg/setup_decay"
DROPOUT = "reg/dropout"
DROPOUT_SETUP = "reg/setup_dropout"
LAYERS = "reg.layers"
LIPSCHITZ_CHEAP = "reg/lipschitz_cheap_norms"
LIPSCHITZ_GAP = "reg/lipschitz_gap"
LIPSCHITZ_LOG10 = "reg/lipschitz_log10"
LIPSCHITZ_LOWER = "reg/lipschitz_lower"
LIPSCHITZ_UPPER = "reg/lipschitz_upper"
MC_DROPOUT = "reg/mc_dropout"
OPTIMALITY = "reg/optimality"
PATH = "reg/path"
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
    "optimality",
    "path",
    "penalty",
    "penalty_ratio",
    "setup",
    "setup_activity",
    "setup_constraints",
    "setup_decay",
    "setup_decayed_by",
    "setup_dropout",
    "setup_margin",
    "setup_spectral",
    "target_sparsity",
    "update_ratio",
    "weight_decay",
    "weights",
)
"""Names that users' metrics must not have: with two kinds of data under one tag, TensorBoard shows neither."""

PAGE = "lightning_reg_page"
"""The plugin name of the page "Regularization" in TensorBoard, which owns the data at `LAYERS`."""


class PerLayer:
    """The pattern of tags made by `per_layer`, with the prefix that a logger may put before them.

    Runs in a log directory may have tags of any length. This takes time in proportion to the length; an equivalent
    regular expression would start again at each "-reg.".
    """

    def fullmatch(self, tag: str) -> dict[str, str | None] | None:
        """Return `prefix`, `metric` and `layer` of such a tag, with the shortest prefix; None for any other tag."""
        start = 0
        while (slash := tag.find("/", start)) >= 0 and slash + 1 < len(tag):
            begin = start
            for other in _NO_METRIC.finditer(tag, start, slash):
                begin = other.end()
            # A metric ends at the slash, so it begins behind the last character that none has.
            found = _METRIC.search(tag, begin, slash)
            if found and (found[1] or found.start() == 0):
                prefix = tag[: found.start()] if found[1] else None
                return {"prefix": prefix, "metric": tag[found.end() : slash], "layer": tag[slash + 1 :]}
            start = slash + 1
        return None


_NO_METRIC = re.compile(r"[^\w.-]+")
_METRIC = re.compile(r"(^|-)reg\.(?=.)")
PER_LAYER = PerLayer()
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


def values_of(metric: str, layers: Sequence[str]) -> str:
    """Return the tag of a metric of all `layers` in one tensor.

    The tag contains a digest of the names: another set of layers, for example after unfreezing, is another series.
    """
    digest = hashlib.sha256("\n".join(layers).encode()).hexdigest()[:8]
    return f"{LAYERS}.{digest}/{metric}"


VALUES = re.compile(r"((?P<prefix>.*)-)?reg\.layers\.[0-9a-f]{8}/(?P<metric>[^/]+)", re.DOTALL)
"""A tag made by `values_of`, with the prefix."""
