"""Which weights a selection chooses, under which names, and what it says when it chooses none."""

import warnings
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

from lightning_reg import Select
from lightning_reg.selection import as_select, named_weights, select_weights
from tests.models import Network

MATRICES = ["encoder.weight", "conv.weight", "head.weight"]


def chosen(module, select=None):
    return [weight.name for weight in select_weights(named_weights(module), as_select(select)).chosen]


def left_out(module, select=None):
    return dict(select_weights(named_weights(module), as_select(select)).left_out)


def without_warnings(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


# The choice


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, MATRICES),
        ("*", MATRICES),
        ("head.weight", ["head.weight"]),
        ("head.*", ["head.weight"]),
        ("*.weight", MATRICES),
        ("*d.*", ["head.weight"]),
        ("[eh]*", ["encoder.weight", "head.weight"]),
        ("??????r.weight", ["encoder.weight"]),
        (["head.*", "encoder.*"], ["encoder.weight", "head.weight"]),
        (("head.*",), ["head.weight"]),
        (Select(exclude="head.*"), ["encoder.weight", "conv.weight"]),
        (Select(["*e*.weight"], exclude=["head.*", "*.bias"]), ["encoder.weight"]),
        (Select("head.*", min_ndim=1), ["head.weight", "head.bias"]),
        (Select("norm.*", min_ndim=0), ["norm.weight", "norm.bias"]),
        (Select(min_ndim=3), ["conv.weight"]),
        (Select(module_types=[nn.Linear]), ["encoder.weight", "head.weight"]),
        (Select(module_types=nn.Conv1d), ["conv.weight"]),
        (Select(module_types=(nn.Conv1d, nn.LayerNorm), min_ndim=1, exclude="*.bias"), ["norm.weight", "conv.weight"]),
        (Select("head.*", module_types=[nn.Linear]), ["head.weight"]),
    ],
)
def test_globs_types_and_dimensions_choose_in_the_order_of_the_model(select, expected):
    assert chosen(Network(), select) == expected


def test_a_subclass_of_a_module_type_counts():
    class MyLinear(nn.Linear):
        pass

    assert chosen(nn.Sequential(MyLinear(2, 2)), Select(module_types=[nn.Linear])) == ["0.weight"]


def test_frozen_weights_are_chosen_so_that_thawing_them_later_works():
    network = Network().requires_grad_(False)

    assert chosen(network) == MATRICES


def test_parameters_at_the_root_have_no_dot():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(2, 2))
            self.temperature = nn.Parameter(torch.ones(()))

    assert chosen(Root()) == ["table"]
    assert left_out(Root()) == {"temperature": "0 < 2 dimensions"}
    assert chosen(Root(), Select("t*", min_ndim=0)) == ["table", "temperature"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.MultiheadAttention(4, 2), ["layer.in_proj_weight", "layer.out_proj.weight"]),
        (nn.LSTM(2, 3, num_layers=2), [f"layer.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh")]),
        (nn.Embedding(5, 2), ["layer.weight"]),
        (nn.Bilinear(2, 3, 4), ["layer.weight"]),
        (nn.ConvTranspose2d(2, 3, 3), ["layer.weight"]),
        (
            nn.ParameterList([torch.ones(2, 2), torch.ones(2), torch.ones(2, 2, dtype=torch.complex64)]),
            ["layer.0", "layer.2"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_every_kind_have_their_matrices_chosen(layer, expected):
    assert chosen(nn.ModuleDict({"layer": layer})) == expected


def test_integers_are_not_weights():
    network = nn.Linear(2, 2)
    network.table = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)

    assert left_out(network) == {"table": "torch.int8 is not a floating-point type", "bias": "1 < 2 dimensions"}


def test_every_weight_left_out_has_its_reason():
    select = Select(["conv.*", "*.weight"], exclude="conv.b*", module_types=[nn.Conv1d, nn.LayerNorm])

    assert left_out(Network(), select) == {
        "encoder.weight": "in a Linear, not in `module_types` of `select`",
        "encoder.bias": "matches no pattern of `select`",
        "norm.weight": "1 < 2 dimensions",
        "norm.bias": "matches no pattern of `select`",
        "conv.bias": "excluded by 'conv.b*'",
        "head.weight": "in a Linear, not in `module_types` of `select`",
        "head.bias": "matches no pattern of `select`",
    }


# Weights with several names


def tied():
    """Return a network whose one matrix is `embedding.weight` and `head.weight`."""
    network = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    network["head"].weight = network["embedding"].weight
    return network


def shared():
    """Return a network with one layer in two places."""
    layer = nn.Linear(3, 3)
    return nn.ModuleDict({"embedding": layer, "between": nn.Linear(3, 3), "head": layer})


@pytest.mark.parametrize("network", [tied, shared])
@pytest.mark.parametrize("select", ["embedding.*", "head.*", ["head.*", "embedding.*"], "[eh]*.weight"])
def test_a_weight_with_two_names_is_chosen_once_by_either(network, select):
    module = network()

    selection = select_weights(named_weights(module), as_select(select))

    assert [weight.parameter for weight in selection.chosen] == [module["head"].weight]
    assert selection.chosen[0].names == ["embedding.weight", "head.weight"]


@pytest.mark.parametrize("network", [tied, shared])
@pytest.mark.parametrize("name", ["embedding", "head"])
def test_a_weight_with_two_names_is_excluded_by_either(network, name):
    reasons = left_out(nn.ModuleDict({"net": network(), "other": nn.Linear(1, 1)}), Select(exclude=f"net.{name}.*"))

    assert reasons["net.embedding.weight"] == f"excluded by 'net.{name}.*'"


# Names as the user wrote them


def compiled():
    return torch.compile(Network())


def compiled_part():
    network = Network()
    network.encoder = torch.compile(network.encoder)
    return network


def checkpointed_part():
    network = Network()
    network.encoder = checkpoint_wrapper(network.encoder)
    return network


def wrapped_twice():
    network = checkpointed_part()
    network.encoder = torch.compile(network.encoder)
    return torch.compile(network)


def pruned():
    network = Network()
    prune.l1_unstructured(network.encoder, "weight", amount=3)
    prune.random_unstructured(network.conv, "bias", amount=1)
    return network


def old_spectral_norm():
    network = Network()
    without_warnings(nn.utils.spectral_norm, network.encoder)
    return network


def new_spectral_norm():
    network = Network()
    parametrizations.spectral_norm(network.encoder)
    return network


def compiled_and_parametrized():
    network = new_spectral_norm()
    network.encoder = torch.compile(network.encoder)
    return network


@pytest.mark.parametrize(
    "network",
    [
        compiled,
        compiled_part,
        checkpointed_part,
        wrapped_twice,
        pruned,
        old_spectral_norm,
        new_spectral_norm,
        compiled_and_parametrized,
    ],
)
def test_a_wrapper_changes_neither_names_nor_choice(network):
    plain = Network()

    assert {name for weight in named_weights(network()) for name in weight.names} == {
        name for name, _ in plain.named_parameters()
    }
    for select in (None, "encoder.weight", Select(module_types=[nn.Linear])):
        assert sorted(chosen(network(), select)) == sorted(chosen(plain, select))


def test_a_weight_that_became_two_tensors_is_found_whole_and_in_parts():
    network = Network()
    parametrizations.weight_norm(network.head)

    both = ["head.weight.original0", "head.weight.original1"]
    assert chosen(network, "head.weight") == chosen(network, "head.weight.*") == both
    assert chosen(network, both[1]) == both[1:]
    assert chosen(network, Select(module_types=[nn.Linear])) == ["encoder.weight", *both]
    assert set(both).isdisjoint(chosen(network, Select(exclude="head.weight")))


def test_weights_of_a_users_parametrization_belong_to_its_module():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7, 5))

        def forward(self, weight):
            return weight * self.scale

    network = Network()
    register_parametrization(network.encoder, "weight", Scaled())

    inside = "encoder.parametrizations.weight.0.scale"
    assert sorted(chosen(network, "encoder.*")) == [inside, "encoder.weight"]
    assert inside in chosen(network, Select(module_types=[nn.Linear]))
    assert inside not in chosen(network, Select(exclude="*.parametrizations.*"))


def test_a_users_own_name_that_ends_like_a_wrapped_one_stays():
    network = nn.Module()
    network.weight_orig = nn.Parameter(torch.ones(2, 2))
    network.my_orig_mod = nn.Linear(2, 2)
    network.original = nn.Parameter(torch.ones(2, 2))

    assert chosen(network) == ["weight_orig", "original", "my_orig_mod.weight"]


# Mistakes


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("encodr.weight", r"`select` pattern 'encodr\.weight' matches no parameter\. Nearest names: encoder\.weight"),
        (["head.*", "hed.bias"], r"`select` pattern 'hed\.bias' matches no parameter\. Nearest names: head\.bias"),
        (Select(exclude="normm.*"), r"`select` pattern 'normm\.\*' matches no parameter\. Nearest names: norm\."),
        ("Head.*", r"`select` pattern 'Head\.\*' matches no parameter"),
        ("_orig_mod.*", r"`select` pattern '_orig_mod\.\*' matches no parameter"),
        ("", "`select` pattern '' matches no parameter"),
        ("*.bias", r"`select` pattern '\*\.bias' matches 4 parameters.*encoder\.bias: 1 < 2 dimensions.*min_ndim=1"),
        (
            ["head.*", "norm.*"],
            r"`select` pattern 'norm\.\*' matches 2 parameters.*norm\.weight: 1 < 2 dim.*min_ndim=1",
        ),
        (Select("norm.*", module_types=[nn.Linear]), r"'norm\.\*' matches 2.*norm\.weight: in a LayerNorm"),
        (Select(module_types=[nn.Conv2d]), "`select` module type Conv2d has no weight.*: Conv1d, LayerNorm, Linear"),
        (Select(module_types=[nn.Linear, nn.GRU]), "`select` module type GRU has no weight"),
        (
            Select("head.*", exclude="*.weight"),
            r"`select` must choose at least one weight.*none of 8.*encoder\.weight: matches no pattern",
        ),
        (
            Select(exclude="*"),
            r"`select` must choose at least one weight.*none of 8.*encoder\.weight: excluded by '\*'",
        ),
    ],
)
def test_a_selection_without_effect_is_an_error_that_names_the_candidates(select, message):
    with pytest.raises(ValueError, match=message):
        chosen(Network(), select)


@pytest.mark.parametrize("select", [None, "encoder.*"])
def test_a_module_without_parameters_is_an_error(select):
    with pytest.raises(ValueError, match=r"must choose at least one weight.*none of 0.*The module has no parameters"):
        chosen(nn.Tanh(), select)


# Properties

names = st.text("abc", min_size=1, max_size=3)
shapes = st.lists(st.integers(1, 2), max_size=4)
globs = st.lists(st.sampled_from(["*", "a*", "*b", "*c*", "[!a]*", "?", "??*"]), max_size=3)


@given(st.dictionaries(names, shapes, max_size=8), globs.filter(bool), globs, st.integers(0, 3))
def test_a_selection_divides_the_weights_or_names_the_mistake(parameters, include, exclude, min_ndim):
    module = nn.ParameterDict({name: torch.ones(shape) for name, shape in parameters.items()})
    order = [name for name, _ in module.named_parameters()]
    big = [name for name in order if len(parameters[name]) >= min_ndim]

    def matching(patterns):
        return {name for name in order for pattern in patterns if fnmatchcase(name, pattern)}

    expected = [name for name in big if name in matching(include) - matching(exclude)]
    every_pattern_counts = all(matching([glob]) & set(big) for glob in include) and all(
        matching([glob]) for glob in exclude
    )
    select = Select(include, exclude, min_ndim=min_ndim)
    if not (expected and every_pattern_counts):
        with pytest.raises(ValueError, match="`select`"):
            chosen(module, select)
        return

    selection = select_weights(named_weights(module), select)

    assert [weight.name for weight in selection.chosen] == expected
    assert [weight.name for weight in selection.weights] == order
    assert selection.left_out.keys() == set(order) - set(expected)
    assert all(selection.left_out.values())


def test_a_lazy_module_that_has_no_shape_yet_is_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"LazyLinear at 'head' have no shape yet. Run one batch"):
        named_weights(nn.ModuleDict({"head": nn.LazyLinear(3)}))


def test_the_remedy_for_few_dimensions_is_given_only_where_they_are_the_reason():
    weights = named_weights(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)))

    with pytest.raises(ValueError, match="in a Linear, not in `module_types` of `select`") as error:
        select_weights(weights, Select(include="0.*", module_types=[nn.Conv1d], min_ndim=0))

    assert "min_ndim=1" not in str(error.value)
    assert "takes them" not in str(error.value)


def flat():
    """Return a network as in e3nn: every weight has one dimension."""
    network = nn.ModuleDict({"first": nn.Module(), "second": nn.Module()})
    for number, part in enumerate(network.values(), start=3):
        part.weight = nn.Parameter(torch.ones(number))
        part.register_parameter("table", nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False))
    return network


@pytest.mark.parametrize(
    ("select", "shown", "remedy"),
    [
        (None, "first", r"`Select\(min_ndim=1\)` takes them"),
        (Select(), "first", r"`Select\(min_ndim=1\)` takes them"),
        ("second.*", "second", r"`Select\(\.\.\., min_ndim=1\)` takes them"),
        (Select(exclude="first.*"), "first", r"`Select\(\.\.\., min_ndim=1\)` takes them"),
    ],
)
def test_if_every_weight_is_flat_the_error_says_that_these_may_be_the_real_ones(select, shown, remedy):
    message = rf"{shown}\.weight: 1 < 2 dim.*No weight of this model has 2 or more.*may be the real weights.*{remedy}"
    with pytest.raises(ValueError, match=message):
        chosen(flat(), select)


@pytest.mark.parametrize(("min_ndim", "said"), [(2, False), (3, False), (4, True)])
def test_the_error_suspects_real_weights_only_if_no_others_have_the_dimensions(min_ndim, said):
    # The largest weight is the kernel of a convolution: three dimensions.
    with pytest.raises(ValueError, match="right kind") as error:
        chosen(Network(), Select("*.bias", min_ndim=min_ndim))

    assert ("real weights" in str(error.value)) == said
    assert "`Select(..., min_ndim=1)` takes them." in str(error.value)


def test_the_remedy_for_flat_weights_works():
    assert chosen(flat(), Select(min_ndim=1)) == ["first.weight", "second.weight"]
