"""The same engine on CUDA: close to the CPU's numbers in float32, and as isolated as there."""

from pathlib import Path

import pytest
import torch
from loractl.bus.ids import AdapterId
from loractl.tests.trainer_actor.compute_lab import (
    Lab,
    adam,
    batch,
    begin,
    gradients,
    run,
    spec,
    state_in,
    weights,
)
from loractl.trainer_actor.budgets import Budgets
from loractl.trainer_actor.resident import Residents
from loractl.trainer_actor.spill import SpillStore

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_float32_on_cuda_agrees_with_the_cpu(lab: Lab, family: str) -> None:
    lora = spec(rank=4)
    found = {}
    for device in ("cpu", "cuda"):
        engine = lab.engine(family, device=device, dtype="float32")
        begin(engine, 0, lora)
        (result,) = run(engine, batch(3, [9, 17], lora=lora))
        found[device] = result.logprobs, gradients(engine, 0)

    (cpu_logprobs, cpu_gradients), (cuda_logprobs, cuda_gradients) = found["cpu"], found["cuda"]
    assert abs(cpu_logprobs - cuda_logprobs).max() < 1e-4
    for name, expected in cpu_gradients.items():
        torch.testing.assert_close(cuda_gradients[name], expected, rtol=1e-3, atol=1e-4)


def test_adapters_interleaved_on_cuda_end_as_if_alone(lab: Lab) -> None:
    engine = lab.engine("qwen3", device="cuda")
    loras = [spec(rank=rank, seed=rank) for rank in (2, 4, 8)]

    def train(slots: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        for slot in slots:
            begin(engine, slot, loras[slot])
        for step in range(4):
            for slot in slots:
                run(engine, batch(10 * slot + step, [12, 12], slot=slot, lora=loras[slot]))
            for slot in slots:
                engine.optim_step(slot, adam())
        return {slot: weights(engine, slot) for slot in slots}

    together = train([0, 1, 2])

    for slot in (0, 1, 2):
        engine.bank.close(slot)
        alone = train([slot])[slot]
        assert all(torch.equal(together[slot][name], alone[name]) for name in alone)


def test_a_state_survives_the_way_to_the_host_and_back(lab: Lab) -> None:
    engine = lab.engine("qwen3", device="cuda")
    lora = spec(rank=4)
    begin(engine, 0, lora)
    run(engine, batch(5, [8, 8], lora=lora))
    engine.optim_step(0, adam())
    run(engine, batch(6, [8, 8], lora=lora))
    before, _ = engine.checkpoint_tensors(state_in(engine, 0))

    state = state_in(engine, 0)
    engine.bank.close(0)
    engine.bank.copy_in(1, state)

    after, _ = engine.checkpoint_tensors(state_in(engine, 1))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


LORAS = [
    spec(rank=2, seed=2),
    spec(rank=12, seed=3, train_mlp=False),
    spec(rank=8, seed=4, train_attn=False, train_unembed=False),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_that_share_a_pass_on_cuda_agree_with_each_alone(lab: Lab, dtype: str) -> None:
    engine = lab.engine("qwen3", device="cuda", dtype=dtype)
    parts = [batch(slot, [9, 17, 5], slot=slot, lora=lora) for slot, lora in enumerate(LORAS)]
    tolerance = {"float32": 1e-4, "bfloat16": 5e-2}[dtype]

    def trained(slots: list[int]) -> dict[int, tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        for slot in slots:
            begin(engine, slot, LORAS[slot])
        results = run(engine, *(parts[slot] for slot in slots))
        return {
            slot: (torch.tensor(result.logprobs), gradients(engine, slot))
            for slot, result in zip(slots, results, strict=True)
        }

    together = trained([0, 1, 2])

    for slot in (0, 1, 2):
        logprobs, expected = trained([slot])[slot]
        torch.testing.assert_close(together[slot][0], logprobs, rtol=0, atol=10 * tolerance)
        for name, gradient in expected.items():
            apart = torch.linalg.vector_norm(together[slot][1][name] - gradient)
            assert apart <= tolerance * torch.linalg.vector_norm(gradient) + 1e-6, name


def test_an_adapter_that_is_nan_on_cuda_harms_no_other(lab: Lab) -> None:
    engine = lab.engine("qwen3", device="cuda", dtype="float32")
    for slot in (0, 1):
        begin(engine, slot, LORAS[0])
    engine.bank.row(1).main.fill_(torch.nan)
    parts = [batch(1, [9, 17], slot=slot, lora=LORAS[0]) for slot in (0, 1)]

    sound, broken = engine.forward_backward(parts)

    assert not isinstance(sound, Exception)
    assert getattr(broken, "code", "") == "not_finite"
    assert all(bool(torch.isfinite(each).all()) for each in gradients(engine, 0).values())
    assert not gradients(engine, 1)


def test_states_that_move_behind_passes_end_as_if_they_had_stayed(lab: Lab, tmp_path: Path) -> None:
    names = [AdapterId(name) for name in "abcd"]
    loras = {name: spec(rank=4, seed=seed) for seed, name in enumerate(names)}

    def trained(slots: int) -> list[torch.Tensor]:
        engine = lab.engine("qwen3", device="cuda", dtype="float32", slots=slots)
        budgets = Budgets(slots=slots, device_bytes=1 << 40, host_bytes=1 << 34, disk_bytes=1 << 34)
        residents = Residents(engine.bank, budgets, SpillStore(tmp_path / f"spill-{slots}"))
        for name in names:
            residents.admit(name, loras[name])
        for turn in range(12):
            now, soon = names[turn % 4], names[(turn + 1) % 4]
            [slot] = residents.place_all([now], soon=[soon])
            residents.prefetch([soon])
            run(engine, batch(turn, [12, 12], slot=slot, lora=loras[now]))
            engine.optim_step(slot, adam())
        return [residents.state(name).main.clone() for name in names]

    moved, stayed = trained(2), trained(4)

    assert all(torch.equal(one, other) for one, other in zip(moved, stayed, strict=True))
