"""Step sizes against what real optimizers do: how far they move a weight whose gradient stays the same."""

from functools import partial

import pytest
import torch
from torch import optim

from lightning_reg import register_step_size
from lightning_reg.functional.proximal import step_size
from lightning_reg.functional.proximal.step_size import find_rule

OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.1),
    "SGD momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "SGD nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "SGD dampening": partial(optim.SGD, lr=0.1, momentum=0.8, dampening=0.5),
    "SGD dampening without momentum": partial(optim.SGD, lr=0.1, dampening=0.5),
    "SGD foreach": partial(optim.SGD, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "SGD tensor": partial(optim.SGD, lr=torch.tensor(0.1), momentum=0.9),
    "SGD maximize": partial(optim.SGD, lr=0.1, maximize=True),
    "Adam": partial(optim.Adam, lr=0.1),
    "Adam eps": partial(optim.Adam, lr=0.1, eps=0.5, betas=(0.5, 0.99)),
    "Adam amsgrad": partial(optim.Adam, lr=0.1, amsgrad=True),
    "Adam foreach": partial(optim.Adam, lr=0.1, foreach=True),
    "Adam fused": partial(optim.Adam, lr=0.1, fused=True),
    "Adam tensor": partial(optim.Adam, lr=torch.tensor(0.1, dtype=torch.float64)),
    "Adam maximize": partial(optim.Adam, lr=0.1, maximize=True),
    "AdamW": partial(optim.AdamW, lr=0.1, weight_decay=0.0),
    "AdamW fused amsgrad": partial(optim.AdamW, lr=0.1, weight_decay=0.0, fused=True, amsgrad=True),
    "NAdam": partial(optim.NAdam, lr=0.1),
    "NAdam foreach": partial(optim.NAdam, lr=0.1, foreach=True, eps=0.1, momentum_decay=0.1),
    "RAdam": partial(optim.RAdam, lr=0.1),
    "RAdam foreach": partial(optim.RAdam, lr=0.1, foreach=True, eps=0.1),
    "Adamax": partial(optim.Adamax, lr=0.1),
    "Adamax foreach": partial(optim.Adamax, lr=0.1, foreach=True),
    "Adagrad": partial(optim.Adagrad, lr=0.1),
    "Adagrad decay": partial(optim.Adagrad, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3, eps=0.1),
    "Adagrad fused": partial(optim.Adagrad, lr=0.1, fused=True),
    "RMSprop": partial(optim.RMSprop, lr=0.1),
    "RMSprop momentum": partial(optim.RMSprop, lr=0.1, alpha=0.9, momentum=0.5, eps=0.3),
    "RMSprop centered": partial(optim.RMSprop, lr=0.1, centered=True, eps=0.3),
    "RMSprop momentum foreach": partial(optim.RMSprop, lr=0.1, alpha=0.9, momentum=0.5, eps=0.3, foreach=True),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

GRADIENT = torch.tensor([[1.0, -0.5, 1e-3], [2.0, 30.0, -0.25]], dtype=torch.float64)


def last_step(optimizer, weight, steps):
    """Take steps with one gradient; return how far the last one went for a gradient of 1."""
    for _ in range(steps):
        before = weight.detach().clone()
        weight.grad = GRADIENT.clone()
        optimizer.step()
    direction = -1 if optimizer.param_groups[0]["maximize"] else 1
    return direction * (before - weight.detach()) / GRADIENT


# A running mean of gradients is at its final value only after a while; most optimizers correct for that.
AT_ONCE = [
    name for name in OPTIMIZERS if not any(part in name for part in ("momentum", "nesterov", "dampening", "SGD "))
]


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 300) for name in OPTIMIZERS), *((name, steps) for name in AT_ONCE for steps in (1, 3))]
)
def test_it_is_the_distance_that_the_optimizer_moves_a_weight_per_gradient(name, steps):
    weight = torch.nn.Parameter(torch.zeros_like(GRADIENT))
    optimizer = OPTIMIZERS[name]([weight])

    distance = last_step(optimizer, weight, steps)

    (size,) = find_rule(type(optimizer)).step_sizes([weight], [optimizer.state[weight]], optimizer.param_groups[0])
    torch.testing.assert_close(torch.as_tensor(size).expand(2, 3).double(), distance, rtol=1e-6, atol=1e-9)


@every_optimizer
def test_counts_and_products_that_are_kept_on_a_device_give_the_same(name, monkeypatch):
    weight = torch.nn.Parameter(torch.zeros_like(GRADIENT))
    optimizer = OPTIMIZERS[name]([weight])
    rule, (group,) = find_rule(type(optimizer)), optimizer.param_groups
    for steps in (1, 9):
        last_step(optimizer, weight, steps)
        (expected,) = rule.step_sizes([weight], [optimizer.state[weight]], group)
        with monkeypatch.context() as patched:
            patched.setattr(step_size, "_number", torch.as_tensor)  # as on a GPU, where they are not read
            (size,) = rule.step_sizes([weight], [optimizer.state[weight]], group)

        actual, expected = (torch.as_tensor(value).double().expand(2, 3) for value in (size, expected))
        # torch keeps steps in float32, in which RAdam's first averages are short of digits.
        torch.testing.assert_close(actual, expected, rtol=1e-2 if "RAdam" in name else 1e-4, atol=0)


def test_a_fused_optimizer_whose_steps_have_all_been_skipped_has_finite_step_sizes():
    weight = torch.nn.Parameter(torch.zeros_like(GRADIENT))
    optimizer = optim.Adam([weight], lr=0.1, fused=True)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    last_step(optimizer, weight, 1)

    (size,) = find_rule(optim.Adam).step_sizes([weight], [optimizer.state[weight]], optimizer.param_groups[0])

    assert optimizer.state[weight]["step"] == 0
    assert size.isfinite().all()


class Inherits(optim.Adam):
    """Takes Adam's step."""


class Overrides(optim.Adam):
    """Takes a step of its own."""

    def step(self, closure=None):
        return None


def test_a_subclass_has_the_rule_of_its_parent_unless_it_overrides_the_step():
    parameters = [torch.nn.Parameter(torch.ones(1))]
    for kind in (Inherits, Overrides, optim.AdamW, optim.Adam):  # torch wraps `step` of a class when it is first used
        kind(parameters)

    assert find_rule(Inherits) is find_rule(optim.Adam)
    assert find_rule(Overrides) is None
    assert find_rule(optim.LBFGS) is None
    assert find_rule(optim.SparseAdam) is None


def test_the_last_registration_counts():
    class Mine(optim.Optimizer):
        pass

    for value in (1.0, 2.0):
        register_step_size(Mine, lambda weights, states, group, value=value: [value] * len(weights))

    assert find_rule(Mine).step_sizes([torch.ones(1)], [{}], {}) == [2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((optim.Adam([torch.ones(1)]), len), "`optimizer_type` must be a subclass of torch.optim.Optimizer, got Adam"),
        ((int, len), "got <class 'int'>"),
        ((optim.LBFGS, 0.1), "`function` must be callable as function"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        register_step_size(*arguments)
