"""The loader that TensorBoard calls at its start. It must not raise, because an error would end TensorBoard."""

import argparse
import logging
from typing import Any

from tensorboard.plugins import base_plugin
from typing_extensions import override

from lightning_reg.tensorboard import tags

_STEPS = 1000
_logger = logging.getLogger(__name__)


class RegularizationLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """Makes the plugin, or logs in one line why it cannot."""

    @override
    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Have TensorBoard keep as many steps of our tensors as of scalars, unless the user has set a number.

        Of other tensors TensorBoard keeps 10 or 100 steps.
        """
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            flags.samples_per_plugin = {tags.PAGE: _STEPS, **samples}

    @override
    def load(self, context: base_plugin.TBContext) -> Any:
        """Return the plugin; `None`, which TensorBoard skips, if anything goes wrong."""
        try:
            # Imported here, so that errors of the import are caught too.
            from lightning_reg.tensorboard.plugin.routes import RegularizationPlugin

            return RegularizationPlugin(context)
        except Exception as error:  # TensorBoard's other pages must work in any case
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _logger.warning('No page "Regularization" in TensorBoard: %s', reason)
            return None
