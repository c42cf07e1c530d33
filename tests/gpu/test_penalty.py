"""The promise on a CUDA device, and that no step waits for it."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lightning_reg import AnchorPenalty, ElasticNetPenalty, L1Penalty, L2Penalty, Linear
from lightning_reg.functional import l1_norm, squared_l2_norm
from tests.models import KeepWeights, Regressor, Silent, loader, weights_of
from tests.reference import PENALTIES, assert_same_weights, both_modes, every_penalty, train_by_hand

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Those of NCCL, FSDP1 and the compiler differ from one version of torch to the next.
    pytest.mark.filterwarnings("ignore"),
]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def fused_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


@pytest.fixture
def fit(trainer_of):
    def run(*callbacks, module=None, **settings):
        keep = KeepWeights()
        trainer = trainer_of(*callbacks, keep, accelerator="gpu", devices=1, **settings)
        trainer.fit(Regressor() if module is None else module, loader())
        return keep.weights

    return run


def by_hand(term, optimizer=adam, accumulate=1):
    batches = [tuple(tensor.cuda() for tensor in batch) for batch in loader()]
    module = Regressor(optimizer).cuda()
    return weights_of(train_by_hand(module, batches, term, accumulate=lambda epoch: accumulate))


@both_modes
@every_penalty
@pytest.mark.parametrize("accumulate", [1, 3])
def test_plain_training(fit, name, mode, accumulate):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), module=Regressor(adam), accumulate_grad_batches=accumulate)

    assert_same_weights(actual, by_hand(term, accumulate=accumulate), rtol=1e-5)


@both_modes
@every_penalty
@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_agrees_with_full_precision(fit, name, mode, optimizer, precision):
    make, term = PENALTIES[name]

    actual = fit(make(mode=mode), module=Regressor(optimizer), precision=precision)

    # Rounding of half precision, blown up by Adam; without the scale of fp16, 65536, nothing would agree.
    assert_same_weights(actual, by_hand(term), rtol=0.1)


@both_modes
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
@pytest.mark.parametrize("optimizer", [adam, fused_adam])
def test_both_modes_agree_with_each_other(fit, mode, precision, optimizer):
    penalty = ElasticNetPenalty(0.05, 0.3, mode=mode)

    actual = fit(penalty, module=Regressor(optimizer), precision=precision)

    expected = fit(ElasticNetPenalty(0.05, 0.3), module=Regressor(optimizer), precision=precision)
    assert_same_weights(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("mode", ["loss", "grad", "proximal"])
def test_an_offloaded_anchor_takes_no_memory_there_and_gives_the_same_weights(fit, mode):
    class Kept(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.bytes = torch.cuda.memory_allocated()

    found, watches = [], []
    for offload in (False, True):
        watches.append(Kept())
        found.append(fit(AnchorPenalty(0.1, mode=mode, offload=offload), watches[-1], module=Regressor(adam)))

    assert_same_weights(*found, rtol=0)
    matrices = sum(weight.numel() for weight in found[0].values() if weight.ndim > 1)
    assert watches[0].bytes - watches[1].bytes >= 4 * matrices


@both_modes
@pytest.mark.parametrize("compile_mode", ["default", "reduce-overhead"])
def test_compiled_modules(fit, mode, compile_mode):
    make, term = PENALTIES["elastic_net"]
    module = Silent(adam)
    module.network = torch.compile(module.network, mode=compile_mode)

    actual = fit(make(mode=mode), module=module)

    actual = {name.replace("_orig_mod.", ""): weight for name, weight in actual.items()}
    assert_same_weights(actual, by_hand(term), rtol=1e-4)


class NoWaiting(Callback):
    """Between its two hooks, which stand around the penalties', nothing may wait for the device."""

    def __init__(self, debug_mode):
        self.debug_mode = debug_mode

    def on_before_backward(self, trainer, pl_module, loss):
        torch.cuda.set_sync_debug_mode(self.debug_mode)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        torch.cuda.set_sync_debug_mode(self.debug_mode)


@both_modes
@pytest.mark.parametrize("precision", ["16-mixed", "32-true"])
@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("log_every_n_steps", [1, 1000])
def test_no_step_waits_for_the_device(fit, mode, precision, optimizer, log_every_n_steps):
    penalties = [L1Penalty(0.1, mode=mode, schedule=Linear(0.0, 1.0, 5)), L2Penalty(0.1, mode=mode)]

    fit(
        NoWaiting("error"),
        *penalties,
        NoWaiting("default"),
        module=Silent(optimizer),
        precision=precision,
        log_every_n_steps=log_every_n_steps,
    )


@pytest.fixture
def one_rank(monkeypatch):
    """The variables that a launcher sets for one process."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@every_penalty
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.usefixtures("one_rank")
def test_fsdp1_in_grad_mode(fit, name, accumulate):
    make, term = PENALTIES[name]
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear, nn.Conv1d})

    actual = fit(make(mode="grad"), module=Regressor(adam), strategy=strategy, accumulate_grad_batches=accumulate)

    assert_same_weights(actual, by_hand(term, accumulate=accumulate), rtol=1e-5)


@pytest.mark.usefixtures("one_rank")
def test_fsdp1_refuses_loss_mode(fit):
    with pytest.raises(MisconfigurationException, match=r'FSDP1.*Use mode="grad"'):
        fit(L1Penalty(0.1), strategy=FSDPStrategy())


@both_modes
@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
@pytest.mark.usefixtures("one_rank")
def test_ddp_with_nccl(fit, mode, strategy):
    make, term = PENALTIES["elastic_net"]

    actual = fit(make(mode=mode), module=Regressor(adam), strategy=strategy)

    assert_same_weights(actual, by_hand(term), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_norms_on_the_device_agree_with_double_precision(dtype):
    torch.manual_seed(0)
    weights = [torch.randn(shape).to(dtype) for shape in [(3000, 3000), (7,), (0, 4), (64, 3, 7, 7)]]

    on_device = [weight.cuda().requires_grad_() for weight in weights]

    assert l1_norm(on_device).item() == pytest.approx(sum(w.double().abs().sum().item() for w in weights), rel=1e-5)
    squares = sum(w.double().square().sum().item() for w in weights)
    assert squared_l2_norm(on_device).item() == pytest.approx(squares, rel=1e-5)
    (l1_norm(on_device) + squared_l2_norm(on_device)).backward()
    for weight, leaf in zip(weights, on_device, strict=True):
        expected = weight.double().sign() + 2 * weight.double()
        torch.testing.assert_close(
            leaf.grad.double().cpu(), expected, rtol=1e-2 if dtype.itemsize < 4 else 1e-6, atol=0
        )
