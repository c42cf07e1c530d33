"""Bad arguments are refused with the rule, the value and the remedy, before any training step."""

import numpy as np
import pytest
import torch

from lightning_reg import ElasticNetPenalty, L1Penalty, L2Penalty, Penalty, Select
from tests.models import Untrainable

every_class = pytest.mark.parametrize("penalty", [L1Penalty, L2Penalty, ElasticNetPenalty])


@every_class
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf")])
def test_a_strength_must_be_finite_and_not_negative(penalty, value):
    with pytest.raises(ValueError, match=rf"`(strength|alpha)` must be a finite number.*got {value}"):
        penalty(value)


@every_class
@pytest.mark.parametrize("value", [True, "0.1", None, torch.tensor(0.1), torch.tensor(0.1, device="meta"), [0.1]])
def test_a_strength_must_be_a_number(penalty, value):
    with pytest.raises(TypeError, match=r"`(strength|alpha)` must be a number, got .* of type"):
        penalty(value)


@every_class
@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.float64(0.5)])
def test_any_real_number_will_do(penalty, value):
    assert penalty(value).strength == float(value)


@every_class
@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", "float32"), ("16-true", "float16")])
def test_a_strength_beyond_the_precision_of_the_weights_is_refused_before_the_first_step(
    fit, penalty, mode, precision, dtype
):
    with pytest.raises(ValueError, match=rf"`\w+\.strength` must be at most .* the largest number of torch\.{dtype}"):
        fit(penalty(1e39, mode=mode), module=Untrainable(), precision=precision)


@pytest.mark.parametrize(
    ("value", "error"), [(1.5, ValueError), (-0.1, ValueError), (True, TypeError), ("1", TypeError)]
)
def test_the_l1_ratio_must_be_in_the_unit_interval(value, error):
    with pytest.raises(error, match="`l1_ratio` must be"):
        ElasticNetPenalty(0.1, value)


@every_class
@pytest.mark.parametrize(
    ("value", "error"), [("proximate", ValueError), ("", ValueError), (None, TypeError), (1, TypeError)]
)
def test_an_unknown_mode_is_refused_with_the_known_ones(penalty, value, error):
    with pytest.raises(error, match="`mode` must be"):
        penalty(0.1, mode=value)


@every_class
def test_a_schedule_must_be_callable(penalty):
    with pytest.raises(TypeError, match="`schedule` must be a schedule or a callable"):
        penalty(0.1, schedule=0.5)


@every_class
@pytest.mark.parametrize("value", [3, [3], {"a": 1}])
def test_a_selection_must_be_globs_or_a_select(penalty, value):
    with pytest.raises(TypeError, match="`include` must be a glob or a list of globs"):
        penalty(0.1, select=value)


@every_class
@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_a_selection_of_nothing_is_refused_with_the_nearest_names(fit, penalty, mode):
    with pytest.raises(ValueError, match=r"'network.encodre.weight' matches no parameter.*network.encoder.weight"):
        fit(penalty(0.1, select="network.encodre.weight", mode=mode), module=Untrainable())


def test_a_part_of_a_selection_that_matches_nothing_is_refused(fit):
    with pytest.raises(ValueError, match=r"'decoder.\*' matches no parameter"):
        fit(L1Penalty(0.1, select=Select(exclude="decoder.*")), module=Untrainable())


@every_class
@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_a_selection_of_nothing_but_vectors_is_refused(fit, penalty, mode):
    with pytest.raises(ValueError, match="dimensions"):
        fit(penalty(0.1, select="network.encoder.bias", mode=mode), module=Untrainable())


def test_only_the_strength_is_positional():
    with pytest.raises(TypeError, match="positional"):
        L1Penalty(0.1, "network.*")


def test_the_abstract_penalty_wants_a_formula():
    with pytest.raises(TypeError, match="penalty"):
        Penalty(0.1)
