"""Certified accuracy on digits: what each kind of training reaches at about the same accuracy.

    python -m benchmarks.certificates

The network and the data are the ones of `examples/robust_digits.py`: 64-96-48-10 units, 600 images for training and
1197 for testing, with pixels in [0, 1]. Each figure is a mean over three seeds, in percent. `--quick` trains once, for
a few epochs.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from benchmarks._table import print_table
from examples.robust_digits import RADII, Classifier, accuracy, digits
from lightning_reg import MarginPenalty, SpectralConstraint, SpectralNormalization, SpectralNormPenalty
from lightning_reg.functional import margin_bounds
from lightning_reg.metrics import CertifiedAccuracy

SEEDS = (0, 1, 2)
EPOCHS = 60
TRAININGS: Mapping[str, Callable[[], list[Callback]]] = {
    "none": list,
    **{
        f"SpectralNormPenalty({strength})": lambda strength=strength: [SpectralNormPenalty(strength)]  # type: ignore[misc]
        for strength in (0.01, 0.03, 0.1)
    },
    **{
        f"SpectralNormalization({bound})": lambda bound=bound: [SpectralNormalization(bound)]  # type: ignore[misc]
        for bound in (2.0, 1.7)
    },
    **{
        f"SpectralConstraint({bound})": lambda bound=bound: [SpectralConstraint(bound)]  # type: ignore[misc]
        for bound in (3.0, 2.0, 1.5)
    },
    **{
        f"MarginPenalty({strength}, radius={radius})": lambda strength=strength, radius=radius: [  # type: ignore[misc]
            MarginPenalty(strength, radius=radius)
        ]
        for strength, radius in ((1.0, 0.5), (4.0, 0.5), (4.0, 1.0))
    },
}


def shares(callbacks: list[Callback], seed: int, epochs: int) -> list[float]:
    """Train once, and return the accuracy and the certified accuracy at each radius, in percent."""
    torch.manual_seed(seed)
    training, testing = digits()
    module = Classifier()
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True))
    images, labels = testing.tensors
    certified = CertifiedAccuracy(RADII)
    with torch.no_grad():
        certified.update(module(images), labels, margin_bounds(module.network, images[:1]))
        found = [accuracy(module, images, labels), *certified.compute()]
    return [100 * float(share) for share in found]


def main() -> None:
    """Train with each callback, and print the table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    is_quick = "--quick" in sys.argv
    seeds, epochs = (SEEDS[:1], 3) if is_quick else (SEEDS, EPOCHS)
    rows = []
    for name, make in TRAININGS.items():
        found = torch.tensor([shares(make(), seed, epochs) for seed in seeds]).mean(0)
        rows.append((name, *(f"{share:.1f}" for share in found.tolist())))
    print_table(("training", "clean", *(f"certified at {radius:g}" for radius in RADII)), rows)


if __name__ == "__main__":
    main()
