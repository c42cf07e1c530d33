"""The tests, for either package of Lightning: `LIGHTNING_PACKAGE=pytorch_lightning` runs them for the twin."""

import os

HAS_TWIN = os.environ.get("LIGHTNING_PACKAGE") == "pytorch_lightning"
"""Whether `lightning.pytorch` means the twin in all tests."""

if HAS_TWIN:
    from tests import twin

    twin.take_over()
