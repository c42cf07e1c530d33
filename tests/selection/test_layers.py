"""The dimension of the output units of a weight, and parameters that are not the weight of a layer."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization
from transformers.pytorch_utils import Conv1D

from lightning_reg import register_layer
from lightning_reg.selection import named_weights
from tests.layouts import BESIDE_LAYERS, InputsFirst, InputsFirstConvolution, WithTokens


def weights(module):
    return {weight.name: weight for weight in named_weights(module)}


def wrapped(wrap, layer):
    wrap(layer)
    return layer


# Name of a weight -> the dimension along which what one output is made of lies.
LAYERS = {
    "linear": (nn.Linear(3, 2), {"weight": 0}),
    "to one": (nn.Linear(3, 1), {"weight": 0}),
    "bilinear": (nn.Bilinear(2, 3, 4), {"weight": 0}),
    "embedding": (nn.Embedding(5, 2), {"weight": 0}),
    "convolution": (nn.Conv2d(4, 6, 3, groups=2), {"weight": 0}),
    "convolution to one channel": (nn.Conv1d(3, 1, 1), {"weight": 0}),
    "transposed": (nn.ConvTranspose2d(3, 2, 3), {"weight": 1}),
    "transposed to one channel": (nn.ConvTranspose1d(3, 1, 2), {"weight": 1}),
    "transposed in groups": (nn.ConvTranspose1d(4, 6, 2, groups=2), {"weight": 1}),
    "transposed, a channel each": (nn.ConvTranspose1d(4, 4, 2, groups=4), {"weight": 0}),
    "attention": (nn.MultiheadAttention(4, 2), {"in_proj_weight": 0, "out_proj.weight": 0}),
    "attention of two kinds": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
        {"q_proj_weight": 0, "k_proj_weight": 0, "v_proj_weight": 0, "out_proj.weight": 0},
    ),
    "lstm": (nn.LSTM(2, 3, proj_size=2), {"weight_ih_l0": 0, "weight_hh_l0": 0, "weight_hr_l0": 0}),
    "cell": (nn.GRUCell(2, 3), {"weight_ih": 0, "weight_hh": 0}),
    "transformers": (Conv1D(8, 3), {"weight": 1}),
    "user": (InputsFirst(3, 8), {"kernel": 1}),
    "user's convolution": (InputsFirstConvolution(3, 4, 2), {"weight": 1}),
    "pruned": (wrapped(lambda layer: prune.l1_unstructured(layer, "weight", 2), Conv1D(8, 3)), {"weight": 1}),
    "weight norm": (
        wrapped(parametrizations.weight_norm, Conv1D(8, 3)),
        {"weight.original0": 1, "weight.original1": 1},
    ),
    "spectral norm": (wrapped(parametrizations.spectral_norm, Conv1D(8, 3)), {"weight": 1}),
    "compiled": (torch.compile(Conv1D(8, 3)), {"weight": 1}),
}


@pytest.mark.parametrize(("layer", "expected"), LAYERS.values(), ids=LAYERS)
def test_output_units_come_first_whatever_the_layout(layer, expected):
    matrices = {name: weight for name, weight in weights(layer).items() if len(weight.shape) > 1}

    assert {name: weight.dims[0] for name, weight in matrices.items()} == expected
    for weight in matrices.values():
        assert weight.outside == ""
        assert list(weight.dims[1:]) == sorted({*range(len(weight.shape))} - {weight.dims[0]})


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_old_weight_norm_changes_nothing():
    layer = nn.utils.weight_norm(Conv1D(8, 3))

    assert {name: weight.dims for name, weight in weights(layer).items() if len(weight.shape) > 1} == {
        "weight_g": (1, 0),
        "weight_v": (1, 0),
    }


def test_the_class_name_that_fsdp2_gives_a_layer_does_not_matter():
    # `fully_shard` gives the module a new class, made from the old one.
    layer = Conv1D(8, 3)
    layer.__class__ = type("FSDPConv1D", (Conv1D,), {})

    assert weights(layer)["weight"].dims == (1, 0)


def test_a_tied_weight_has_the_units_of_the_layer_it_is_a_weight_of():
    module = nn.ModuleDict({"table": nn.ParameterList([torch.ones(3, 8)]), "layer": Conv1D(8, 3)})
    module["layer"].weight = module["table"][0]

    weight = weights(module)["table.0"]
    assert weight.dims == (1, 0)
    assert weight.outside == ""


def test_parameters_outside_layers_are_distinguished_from_weights():
    found = {name: weight.outside for name, weight in weights(WithTokens()).items()}

    assert found == {**dict.fromkeys(BESIDE_LAYERS, "in no layer"), "encoder.weight": "", "encoder.bias": ""}


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (nn.LayerNorm((3, 4)), "weight", "not a matrix of its LayerNorm"),
        (nn.RMSNorm((3, 4)), "weight", "not a matrix of its RMSNorm"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k", "not a matrix of its MultiheadAttention"),
        (nn.ParameterDict({"experts": torch.ones(2, 3, 4)}), "experts", "in no layer"),
        (nn.PReLU(3), "weight", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_scales_and_biases_of_layers_are_not_matrices(module, name, expected):
    assert weights(module)[name].outside == expected


class Stacks(nn.Module):
    def __init__(self, num_experts):
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.ones(4, 6, 5))
        self.gate_up_proj_bias = nn.Parameter(torch.ones(4, 6))
        self.weight = nn.Parameter(torch.ones(4, 5, 6))
        self.table = nn.Parameter(torch.ones(1, 5, 6))


def test_stacked_experts_are_found_by_their_number():
    found = weights(Stacks(4))

    assert {name for name, weight in found.items() if not weight.outside} >= {"gate_up_proj", "weight"}
    assert found["gate_up_proj_bias"].outside == found["table"].outside == "in no layer"
    assert weights(Stacks(3))["gate_up_proj"].outside == "in no layer"
    assert {name for name, weight in found.items() if weight.is_stack} == {"gate_up_proj", "weight"}


def test_kernels_of_torch_and_declared_ones_are_no_stacks():
    class Kernel(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6, 5))

    register_layer(Kernel, output_dim=0)

    for module in (nn.Conv1d(4, 6, 5), nn.Bilinear(4, 5, 6), Kernel()):
        assert not weights(module)["weight"].is_stack


class Scale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 1, 1), "in no layer"), ((1, 1, 1, 6), "in no layer"), ((6, 1), ""), ((1, 6), ""), ((2, 3, 1), "")],
    ids=str,
)
def test_a_factor_for_each_channel_called_weight_is_not_a_weight(shape, expected):
    assert weights(Scale(*shape))["weight"].outside == expected


def test_the_last_declaration_counts_for_subclasses_too():
    class Own(Scale): ...

    class Further(Own): ...

    register_layer(Own, output_dim=None)
    assert weights(Further(3, 4))["weight"].outside == "in no layer"

    register_layer(Further, output_dim=-1)
    assert weights(Further(3, 4))["weight"].dims == (1, 0)
    assert weights(Own(3, 4))["weight"].outside == "in no layer"

    register_layer(Own, output_dim=0)
    assert weights(Own(3, 4))["weight"].dims == (0, 1)
    assert weights(Own(3, 4))["weight"].outside == ""


def test_a_declared_dimension_that_a_weight_lacks_is_an_error():
    class Own(Scale): ...

    register_layer(Own, output_dim=2)

    with pytest.raises(ValueError, match=r"`output_dim=2` for 'weight' of Own, .* shape \(3, 4\)"):
        _ = weights(Own(3, 4))["weight"].dims


def test_the_tensors_of_another_parametrization_may_lack_the_declared_dimension():
    class OuterProduct(nn.Module):
        def forward(self, vector):
            return torch.outer(vector, vector)

        def right_inverse(self, matrix):
            return matrix[0].clone()

    layer = Conv1D(3, 3)
    register_parametrization(layer, "weight", OuterProduct(), unsafe=True)

    assert weights(layer)["weight"].dims == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(1, 1), {"output_dim": 0}), TypeError, r"`module_type` must be a subclass of .*got Linear\("),
        ((int, {"output_dim": 0}), TypeError, "`module_type` must be a subclass of torch.nn.Module, got <class 'int'>"),
        ((Scale, {"output_dim": 1.0}), TypeError, r"`output_dim` must be an int or None, got 1\.0"),
        ((Scale, {"output_dim": True}), TypeError, "`output_dim` must be an int or None, got True"),
        ((Scale, {"output_dim": 0, "weight": 3}), TypeError, "`weight` must be the name of a parameter, got 3 of"),
        ((Scale, {"output_dim": 0, "weight": "a.b"}), ValueError, "`weight` must be the name .* got 'a.b'"),
        ((Scale, {"output_dim": 0, "weight": ""}), ValueError, "`weight` must be the name .* got ''"),
    ],
    ids=repr,
)
def test_bad_arguments_are_refused(arguments, error, message):
    module_type, settings = arguments

    with pytest.raises(error, match=message):
        register_layer(module_type, **settings)


def test_transformers_is_not_imported():
    code = (
        "import sys, torch; from lightning_reg.selection import named_weights;"
        " print(named_weights(torch.nn.Linear(1, 1))[0].dims, 'transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert shown.strip() == "(0, 1) False"
