"""Slot AdamW is megatron-core's DistributedOptimizer, bit for bit; and every step is its own adapter's."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from loractl.bus.errors import InvalidRequest
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, run, spec, state_in
from loractl.trainer_actor.optimizer import adamw_piece, gradient_norm
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.overrides import TorchFunctionMode


class CudaToCpu(TorchFunctionMode):
    """megatron-core's optimizer names CUDA in literals; nothing of what it computes needs it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.")
        return result


@contextmanager
def cuda_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch, CudaToCpu():
        patch.setattr(torch.cuda, "current_device", lambda: "cpu")
        yield


class Flat(MegatronModule):  # type: ignore[misc]
    """A matrix of one row: megatron-core decays no vectors."""

    def __init__(self, config: TransformerConfig, row: torch.Tensor) -> None:
        super().__init__(config)
        self.row = torch.nn.Parameter(row[None].clone())


def distributed_optimizer(
    row: torch.Tensor, clip: float
) -> tuple[DistributedDataParallel, MegatronOptimizer]:
    bf16 = row.dtype is torch.bfloat16
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, use_cpu_initialization=True, bf16=bf16
    )
    ddp = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        Flat(config, row),
    )
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1.0,
            adam_beta1=0.9,
            adam_beta2=0.95,
            adam_eps=1e-12,
            bf16=bf16,
            params_dtype=row.dtype,
            use_distributed_optimizer=True,
            clip_grad=clip,
        ),
        [ddp],
    )
    return ddp, optimizer


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("targets", [{}, {"train_mlp": False}], ids=["all", "some"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_are_the_distributed_optimizers_bit_for_bit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, dtype: str, targets: dict[str, bool], clip: float
) -> None:
    engine = lab.engine("llama", dtype=dtype)
    lora = spec(rank=5, **targets)
    begin(engine, 0, lora)
    row, kind = engine.bank.row(0), getattr(torch, dtype)
    with cuda_is_the_cpu(monkeypatch):
        ddp, optimizer = distributed_optimizer(row.main.to(kind), clip)
    # Theirs begins from rounded weights.
    row.main.copy_(row.main.to(kind))

    for step in range(6):
        rate, decay = 0.02 / (step + 1), 0.1 * (step % 3)
        run(engine, batch(step, [30, 9], lora=lora))
        assert row.gradients is not None
        ddp.module.row.main_grad.copy_(row.gradients[None])
        with cuda_is_the_cpu(monkeypatch):
            ddp.finish_grad_sync()
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = rate, decay
            worked, norm, _ = optimizer.step()
            ddp.zero_grad_buffer()
        outcome = engine.optim_step(0, adam(learning_rate=rate, weight_decay=decay, grad_clip_norm=clip))

        assert worked
        assert outcome.grad_norm > 1.0
        if clip:
            assert outcome.grad_norm == norm
        assert torch.equal(row.main.to(kind), ddp.module.row.data[0]), step
        ((main, state),) = optimizer.optimizer.state.items()
        assert torch.equal(row.main, main)
        assert row.exp_avg is not None
        assert torch.equal(row.exp_avg, state["exp_avg"])
        assert row.exp_avg_sq is not None
        assert torch.equal(row.exp_avg_sq, state["exp_avg_sq"])


def test_the_norm_is_that_of_all_parts_together() -> None:
    parts = [torch.randn(1000), torch.randn(77)]

    assert gradient_norm(parts) == pytest.approx(float(torch.cat(parts).double().norm()), rel=1e-6)
    assert math.isnan(gradient_norm([torch.tensor([1.0, torch.nan])]))


def test_every_adapter_counts_its_own_steps(lab: Lab) -> None:
    engine = lab.engine("llama")
    for slot in range(2):
        begin(engine, slot, spec(seed=1))
    for _ in range(5):
        run(engine, batch(0, [30]))
        engine.optim_step(0, adam())
    run(engine, batch(1, [30], slot=1))
    before = state_in(engine, 1)
    assert before.gradients is not None

    outcome = engine.optim_step(1, adam(learning_rate=0.125))

    # At t = 1 the corrected moments are g and g squared: every weight moves by the learning rate.
    moved = (state_in(engine, 1).main - before.main)[before.gradients.abs() > 1e-4]
    assert outcome.step == 1
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.125), rtol=1e-4, atol=0)


def test_a_step_without_gradients_changes_nothing(lab: Lab) -> None:
    engine = lab.engine("llama")
    begin(engine, 0, spec())
    run(engine, batch(0, [30]))
    first = engine.optim_step(0, adam(weight_decay=0.3))
    before = state_in(engine, 0)

    second = engine.optim_step(0, adam(weight_decay=0.3))

    after = state_in(engine, 0)
    assert (first.applied, first.step, first.tokens) == (True, 1, 30)
    assert (second.applied, second.step, second.tokens, second.grad_norm) == (False, 1, 0, 0.0)
    assert torch.equal(after.main, before.main)
    assert after.exp_avg is not None
    assert before.exp_avg is not None
    assert torch.equal(after.exp_avg, before.exp_avg)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": -1.0},
        {"learning_rate": math.inf},
        {"learning_rate": 3e38},
        {"weight_decay": 3e38},
        {"eps": 1e39},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": 0.0},
        {"eps": 1e-60},
        {"weight_decay": math.nan},
        {"grad_clip_norm": -1.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(lab: Lab, changes: dict[str, float]) -> None:
    engine = lab.engine("llama")
    begin(engine, 0, spec())
    run(engine, batch(0, [30]))

    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        engine.optim_step(0, adam(**changes))


def test_steps_of_pieces_are_those_of_torchs_loop_over_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    main, first, second = torch.randn(5000, generator=draw), torch.zeros(5000), torch.zeros(5000)
    theirs = torch.nn.Parameter(main.clone())
    loop = torch.optim.AdamW(
        [theirs], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False, fused=False
    )
    params = adam(learning_rate=3e-3, eps=1e-8, weight_decay=0.1)

    for step in range(1, 5):
        gradient = torch.randn(5000, generator=draw)
        theirs.grad = gradient.clone()
        loop.step()
        for piece in (slice(0, 1001), slice(1001, 1003), slice(1003, 5000)):
            memory = torch.empty_like(main[piece])
            adamw_piece(main[piece], gradient[piece], first[piece], second[piece], memory, params, step)

    assert torch.equal(main, theirs.data)
    assert torch.equal(first, loop.state[theirs]["exp_avg"])
    assert torch.equal(second, loop.state[theirs]["exp_avg_sq"])
