"""The state of a dropout scheduler during one fit, and its changes of the modules."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from lightning_reg import _checks
from lightning_reg.callbacks.dropout.changes import ModuleChanges
from lightning_reg.callbacks.dropout.compile import CompilableRates
from lightning_reg.callbacks.dropout.sites import Site
from lightning_reg.callbacks.trainer.loggers import log
from lightning_reg.callbacks.trainer.packages import LightningModule, Trainer, rank_zero_warn
from lightning_reg.callbacks.trainer.plan import Plan
from lightning_reg.schedules import Schedule
from lightning_reg.tensorboard import tags


class Run:
    """The chosen rates of one model, until `restore`; a resume needs nothing of it.

    Args:
        root: The model.
        sites: All rates.
        left_out: The reason for the name of each rate that is not chosen.
        share_of: Maps the chosen rates to their multipliers.
        device: The device of the model.

    """

    def __init__(
        self,
        root: nn.Module,
        sites: Sequence[Site],
        left_out: Mapping[str, str],
        share_of: Callable[[Sequence[Site]], Sequence[float]],
        device: torch.device,
    ) -> None:
        self.all_sites = list(sites)
        """All rates, chosen or not."""
        self.sites = [site for site in sites if site.name not in left_out]
        self.shares = share_of(self.sites) if self.sites else ()
        self._shapes = {site.name: f"{type(site.module).__name__}.{site.attribute} {site.base:g}" for site in sites}
        self._left_out = left_out
        self.schedule: Callable[[int], float] | None = None
        """The user's schedule, with durations in ticks."""
        self.first_step = True
        self.is_first_batch = True
        self.changes = ModuleChanges()
        self.is_read = False
        """Whether a logger or callback reads the values logged for the current step."""
        self._factor: float | None = None
        self._has_warned = False
        self._compilable = CompilableRates(root, self.sites, self.shares, device)

    @property
    def rates(self) -> list[float]:
        """The rates that the modules hold in the current step."""
        return [float(site.value or 0.0) for site in self.sites]

    def check(self, schedule: Schedule, total: float) -> None:
        """Raise if `schedule` is known to leave the valid rates within `total` ticks."""
        for bound in schedule.bounds(total) or ():
            self._check(bound, "`schedule`", "within this run")

    def set(self, tick: int) -> None:
        """Set every rate for `tick`."""
        if self.schedule is None:
            return
        factor = _checks.number(f"schedule({tick})", self.schedule(tick))
        self._warn_of_changed()
        if factor != self._factor:
            self._check(factor, f"`schedule({tick})`", f"at tick {tick}")
            self._compilable.set(factor)
            self._factor = factor
        for site, share in zip(self.sites, self.shares, strict=True):
            if site.value != factor * share:
                site.set(factor * share)

    def is_of(self, sites: Iterable[Site]) -> bool:
        """Tell whether these are the rates of this run."""
        return {(site.module, site.attribute) for site in sites} == {
            (site.module, site.attribute) for site in self.all_sites
        }

    def restore(self) -> None:
        """Restore the rates and `forward` of every module."""
        self.changes.end()
        self._compilable.restore()
        for site in self.sites:
            site.restore()

    def plan(self, settings: str, action: str) -> Plan:
        """Return what happens to each rate."""
        shares = zip(self.sites, self.shares, strict=True)
        return Plan(
            settings,
            shapes=self._shapes,
            actions={site.name: action if share == 1 else f"{share:g} * {action}" for site, share in shares},
            left_out=self._left_out,
        )

    def _warn_of_changed(self) -> None:
        """Warn, once, of rates that other code changed since the last step."""
        if self._factor is None or self._has_warned:
            return
        for site, share in zip(self.sites, self.shares, strict=True):
            if site.value != self._factor * share:
                self._has_warned = True
                rank_zero_warn(
                    f"Other code has set the dropout rate of {site.name!r} to {site.value}, but DropoutScheduler sets"
                    f" it at every step ({self._factor * share:g} in the last one). To leave the rate to the other"
                    " code, exclude the module with `select=`."
                )
                return

    def _check(self, factor: float, what: str, when: str) -> None:
        for site, share in zip(self.sites, self.shares, strict=True):
            if not 0 <= factor * share < 1:
                msg = f"{what} must give dropout rates in [0, 1), got {factor * share:g} for {site.name!r} {when}."
                raise ValueError(msg)


def log_rates(trainer: Trainer, pl_module: LightningModule, runs: Sequence[Run]) -> None:
    """Log the mean of all rates, and each of them if they differ."""
    rates = {site.name: rate for run in runs for site, rate in zip(run.sites, run.rates, strict=True)}
    if not rates:  # the modules were removed from the model
        return
    mean = sum(rates.values()) / len(rates)
    # Filled on the device, because `log` would copy a number there and wait.
    value = torch.full((), mean, device=pl_module.device)
    differ = len(set(rates.values())) > 1
    log(trainer, pl_module, {tags.DROPOUT: value}, {"dropout": rates} if differ else {})
