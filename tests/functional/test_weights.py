"""The `weights` arguments of functions: a tensor is one weight, and a strength must fit its precision."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_reg.functional import (
    elastic_net,
    elastic_net_prox,
    group_lasso,
    group_soft_threshold,
    l1_norm,
    soft_threshold,
    sparsity,
    squared_l2_norm,
)

MATRIX = np.array([[0.0, 0.0, 0.0], [0.0, 3.0, -4.0], [1.0, -2.0, 2.0]])
ROW_NORMS = np.sqrt((MATRIX**2).sum(1))
SOFT = np.sign(MATRIX) * np.maximum(np.abs(MATRIX) - 1.5, 0)
GROUPS = MATRIX * np.array([0.0, 1 - 0.5 * np.sqrt(3) / 5, 1 - 0.5 * np.sqrt(3) / 3])[:, None]

SINGLE = {
    "l1_norm": (l1_norm, np.abs(MATRIX).sum()),
    "squared_l2_norm": (squared_l2_norm, (MATRIX**2).sum()),
    "elastic_net": (elastic_net, 0.5 * np.abs(MATRIX).sum() + 0.25 * (MATRIX**2).sum()),
    "group_lasso": (group_lasso, np.sqrt(3) * ROW_NORMS.sum()),
    "group_lasso of columns": (lambda w: group_lasso(w, dim=1), np.sqrt(3) * np.sqrt((MATRIX**2).sum(0)).sum()),
    "sparsity": (sparsity, 4 / 9),
    "sparsity of rows": (lambda w: sparsity(w, dim=0), 1 / 3),
    "soft_threshold": (lambda w: soft_threshold(w, 1.5), SOFT),
    "elastic_net_prox": (lambda w: elastic_net_prox(w, 3.0), SOFT / 2.5),
    "group_soft_threshold": (lambda w: group_soft_threshold(w, 0.5), GROUPS),
}
REAL = ["soft_threshold", "elastic_net_prox", "group_soft_threshold"]

every_function = pytest.mark.parametrize("name", SINGLE)


@every_function
def test_a_tensor_is_one_weight_and_not_the_list_of_its_rows(name):
    function, expected = SINGLE[name]

    result = function(torch.tensor(MATRIX))

    assert isinstance(result, torch.Tensor)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


@every_function
def test_an_iterable_of_one_gives_the_same(name):
    function, expected = SINGLE[name]

    result = function(torch.tensor(MATRIX) for _ in range(1))

    np.testing.assert_allclose(result[0].numpy() if name in REAL else result.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", REAL)
def test_a_single_tensor_changes_in_place_as_one_of_a_list_does(name):
    function = {"soft_threshold": soft_threshold, "elastic_net_prox": elastic_net_prox}.get(name, group_soft_threshold)
    weight = torch.tensor(MATRIX)

    result = function(weight, 0.5, inplace=True)

    assert result is weight
    assert not np.array_equal(weight.numpy(), MATRIX)


@every_function
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (nn.Linear(2, 2), r"got Linear.*of type Linear\. Pass its `\.parameters\(\)`\."),
        (nn.ParameterList([torch.ones(2)]), r"Pass its `\.parameters\(\)`\."),
        ({"a": torch.ones(2)}, r"of type dict\. Pass its `\.values\(\)`\."),
        (None, "got None of type NoneType"),
        ("encoder.weight", "got 'encoder.weight' of type str"),
        (["encoder.weight"], "got one with 'encoder.weight' of type str in it"),
        ([[torch.ones(2)]], "got one with .* of type list in it"),
        ([torch.ones(2), None], "got one with None of type NoneType in it"),
        (np.ones((2, 2)), "of type ndarray in it"),
        ([torch.ones(2, 2), torch.ones(2, 2).long()], "got torch.int64"),
        (torch.ones(2, 2).bool(), "got torch.bool"),
        (torch.eye(2).to_sparse(), r"got a tensor of layout torch\.sparse_coo\. Pass its `\.to_dense\(\)`"),
    ],
)
def test_anything_else_is_refused_with_the_remedy(name, weights, message):
    with pytest.raises(TypeError, match=rf"(?s)`weights` must .*{message}"):
        SINGLE[name][0](weights)


STRONG = {
    "`alpha`": lambda weights, value: elastic_net(weights, value),
    "`strength`": lambda weights, value: group_lasso(weights, value),
    "`threshold`": lambda weights, value: soft_threshold(weights, value),
    "`alpha` ": lambda weights, value: elastic_net_prox(weights, value),
    "`threshold` ": lambda weights, value: group_soft_threshold(weights, value),
}


@pytest.mark.parametrize("argument", STRONG)
@pytest.mark.parametrize(
    ("dtype", "largest", "value"),
    [
        (torch.float16, "65504", 7e4),
        (torch.bfloat16, "3.38953e[+]38", 1e39),
        (torch.float32, "3.40282e[+]38", 1e39),
    ],
)
def test_a_strength_that_would_be_infinite_in_a_weights_precision_is_refused(argument, dtype, largest, value):
    weights = [torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=dtype)]

    message = f"{argument.strip()} must be at most {largest}, the largest number of {dtype}, got"
    with pytest.raises(ValueError, match=message):
        STRONG[argument](weights, value)
    STRONG[argument]([weights[0]], value)  # float64 reaches further
