"""Sparse tensor cores accept the result of NMSparsity."""

import pytest
import torch
from torch import nn

from lightning_reg import NMSparsity
from tests.models import Regressor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


class Wide(Regressor):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_semi_structured_tensors_take_the_result(fit, dtype):
    module = Wide()
    fit(NMSparsity(select="network.2.weight"), module=module, max_epochs=1, accelerator="gpu", devices=1)
    weight = module.network[2].weight.detach().to("cuda", dtype)
    inputs = torch.randn(64, 128, device="cuda", dtype=dtype)

    sparse = torch.sparse.to_sparse_semi_structured(weight)

    assert torch.equal(sparse.to_dense(), weight)
    torch.testing.assert_close(nn.functional.linear(inputs, sparse), inputs @ weight.T, rtol=1e-2, atol=1e-2)
