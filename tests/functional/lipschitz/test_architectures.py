"""Tiny models of transformers: a bound is finite and true, or there is a reason why there is none."""

import math
import re

import pytest
import torch
from torch import nn

from lightning_reg.functional import lipschitz_bound
from tests.callbacks.dropout import architectures

# Models that take no numbers but whole ones alone, or draw random ones.
_LEFT_OUT = """
bart bigbird_pegasus blenderbot blenderbot-small canine clip_text_model cpmant esmc flava fsmt ibert longformer longt5
m2m_100 marian mbart mt5 mvp nllb-moe pegasus pegasus_x plbart t5 umt5 vilt vit_mae
"""
NAMES = [name for name in architectures.NAMES if name not in _LEFT_OUT.split()]
# Without attention, gates and normalization by hand.
FINITE = {"convnext", "dinov3_convnext", "poolformer"}


class OfNumbers(nn.Module):
    """A model as a function of its images, its sounds, or its embedded words."""

    def __init__(self, model):
        super().__init__()
        inputs = architectures.inputs_of(model)
        numbers = [name for name, value in inputs.items() if value.is_floating_point()]
        if not numbers:
            embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
            inputs, numbers = {"inputs_embeds": embedded}, ["inputs_embeds"]
        self.model, self.name = model, numbers[0]
        self.example = inputs.pop(self.name)[:1]
        self.rest = {name: value[:1] for name, value in inputs.items()}

    def forward(self, x):
        return self.model(**{self.name: x}, **self.rest)[0]


def stretch(model, x, rounds=4):
    """Return the norm of a gradient of a unit vector of the output, the best of some: below that of the Jacobian."""

    def function(x):
        return model(x.clone())  # some models change it in place

    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(function(x).shape, generator=generator)
    best = 0.0
    for _ in range(rounds):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x), x, direction / direction.norm())
        best = max(best, gradient.norm().item())
        with torch.no_grad():
            direction = function(x + 0.01 * x.norm() * gradient / gradient.norm()) - function(x)
    return best


@pytest.mark.sweep(share=0.02)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_of_transformers_has_a_true_bound_or_a_reason(name):
    network = OfNumbers(architectures.tiny(name, 0.0)).eval()
    report = lipschitz_bound(network, network.example)
    print(f"{name:<32}{report.value:<12.4g}{sorted({reason for _, reason in report.unbounded})}")

    assert not math.isnan(report.value)
    assert math.isinf(report.value) == (report.unbounded != ())
    assert name not in FINITE or report.value < math.inf
    assert not any(re.match("(Attribute|Index|Runtime|Type|Value)Error", reason) for _, reason in report.unbounded)
    assert math.isinf(report.value) or stretch(network, network.example) <= report.value
