"""Which modules a selection chooses, and what it says when it chooses none."""

import pytest
import torch
from torch import nn

from lightning_reg import Select
from lightning_reg.selection.modules import as_module_select, named_modules, select_modules


def network():
    """Return a network with three dropouts, one of which has two names."""
    early, late = nn.Dropout(0.1), nn.Dropout1d(0.2)
    blocks = nn.ModuleDict({"plain": nn.Linear(2, 2), "early": early, "late": late})
    return nn.ModuleDict({"blocks": torch.compile(blocks), "head": nn.ModuleList([nn.AlphaDropout(), early])})


def select_dropouts(select=None):
    return select_modules(
        named_modules(network()), as_module_select(select), fits=lambda part: hasattr(part, "p"), kind="dropout"
    )


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, ["blocks.early", "blocks.late", "head.0"]),
        ("blocks.*", ["blocks.early", "blocks.late"]),
        ("head.1", ["blocks.early"]),
        (["head.0", "*late"], ["blocks.late", "head.0"]),
        (Select(exclude="head.*"), ["blocks.late"]),
        (Select(module_types=[nn.Dropout, nn.AlphaDropout]), ["blocks.early", "head.0"]),
        (Select("head.*", exclude="head.1", module_types=nn.AlphaDropout), ["head.0"]),
    ],
)
def test_globs_and_types_choose_in_the_order_of_the_model(select, expected):
    assert [module.name for module in select_dropouts(select).chosen] == expected


def test_every_module_left_out_that_fits_has_its_reason():
    assert select_dropouts(Select("b*", exclude="*late", module_types=[nn.Dropout])).left_out == {
        "blocks.late": "excluded by '*late'",
        "head.0": "matches no pattern of `select`",
    }
    assert select_dropouts(Select(module_types=[nn.Dropout])).left_out == {
        "blocks.late": "a Dropout1d, not in `module_types` of `select`",
        "head.0": "a AlphaDropout, not in `module_types` of `select`",
    }


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("blocks.earl", r"`select` pattern 'blocks\.earl' matches no dropout\. Nearest names: blocks\.early"),
        ("blocks.plain", r"'blocks\.plain' matches 1 modules, but no dropout\. Nearest names: blocks\."),
        (Select(exclude="*.plain"), r"'\*\.plain' matches 1 modules, but no dropout"),
        (["head.0", "_orig_mod.*"], r"'_orig_mod\.\*' matches no dropout"),
        (
            Select(["head.*", "*late"], module_types=[nn.Dropout]),
            r"'\*late' matches 1 modules, but none of the right kind\. blocks\.late: a Dropout1d, not in `\w+.*\.$",
        ),
        (
            Select(module_types=[nn.LSTM]),
            "`select` module type LSTM is no dropout in.*: AlphaDropout, Dropout, Dropout1d",
        ),
        (Select(exclude="*"), r"must choose at least one dropout.*none of 3.*blocks\.early: excluded by '\*'"),
    ],
)
def test_a_selection_without_effect_is_an_error_that_names_the_candidates(select, message):
    with pytest.raises(ValueError, match=message):
        select_dropouts(select)


def test_a_number_of_dimensions_is_refused_for_modules():
    with pytest.raises(ValueError, match=r"`min_ndim` must be left out of a `select` that chooses modules.*got 1"):
        as_module_select(Select(min_ndim=1))
