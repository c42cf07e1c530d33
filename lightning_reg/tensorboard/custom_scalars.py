"""The page "Custom Scalars"."""

import re

from lightning_reg.tensorboard import tags

Layout = dict[str, dict[str, list[str | list[str]]]]


def layout(prefix: str = "") -> Layout:
    """Return the charts of this package for TensorBoard's page "Custom Scalars".

    Pass them to `SummaryWriter.add_custom_scalars`, together with your own categories if you like. The layout of the
    last run in a folder wins, and TensorBoard loses charts if the layouts of several runs differ. So the layout names
    no layers, and is the same for every model.

    Args:
        prefix: The prefix of the logger, as in `TensorBoardLogger(prefix=...)`.

    Returns:
        Categories of charts, each `[kind, tags]`: `"Multiline"` with regular expressions, or `"Margin"` with the tags
        of a value and of its lower and upper bound.

    Raises:
        TypeError: If `prefix` is not a string.

    Example:
        >>> list(layout()["Regularization"])[:4]
        ['Loss and penalties', 'Validation', 'Penalty share', 'Sparsity']

    """
    if not isinstance(prefix, str):
        msg = f"`prefix` must be a string, got {prefix!r}."
        raise TypeError(msg)
    start = f"{prefix}-" if prefix else ""

    def lines(*patterns: str) -> list[str | list[str]]:
        return ["Multiline", [f"^{re.escape(start)}{pattern}$" for pattern in patterns]]

    def band(metric: str) -> list[str | list[str]]:
        return ["Margin", [start + tags.over_layers(metric, statistic) for statistic in ("median", "min", "max")]]

    return {
        "Regularization": {
            # Users choose the names of losses and validation metrics.
            "Loss and penalties": lines("(train(ing)?[/_.])?loss(_step)?", f"{tags.PENALTY}(/.*)?"),
            "Validation": lines("val(id(ation)?)?[/_.].+"),
            "Penalty share": lines(tags.PENALTY_RATIO),
            "Sparsity": lines(
                tags.overall("sparsity"), tags.over_layers("sparsity", "max"), rf"{tags.TARGET_SPARSITY}(-\d+)?/target"
            ),
            "Norms": lines(tags.overall("weight_norm"), tags.over_layers("spectral_norm", "max")),
            "Dropout": lines(tags.DROPOUT),
            "Lipschitz constant, lower bound": lines(f"{tags.LIPSCHITZ_LOWER}(/.*)?"),
            "Lipschitz constant, upper bound (log10)": lines(f"{tags.LIPSCHITZ_LOG10}(/.*)?"),
            "Weight norm of layers": band("weight_norm"),
            "Spectral norm of layers": band("spectral_norm"),
        }
    }
