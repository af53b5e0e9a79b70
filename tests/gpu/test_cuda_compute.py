"""The same engine on CUDA: close to the CPU's numbers in float32, and as isolated as there."""

import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, gradients, run, spec, weights

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
        engine.clear(slot)
        alone = train([slot])[slot]
        assert all(torch.equal(together[slot][name], alone[name]) for name in alone)


def test_a_state_survives_the_way_to_the_host_and_back(lab: Lab) -> None:
    engine = lab.engine("qwen3", device="cuda")
    lora = spec(rank=4)
    begin(engine, 0, lora)
    run(engine, batch(5, [8, 8], lora=lora))
    engine.optim_step(0, adam())
    run(engine, batch(6, [8, 8], lora=lora))
    before, _ = engine.checkpoint_tensors(engine.copy_out(0))

    state = engine.copy_out(0)
    engine.clear(0)
    engine.copy_in(1, state)

    after, _ = engine.checkpoint_tensors(engine.copy_out(1))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
