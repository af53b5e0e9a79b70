"""Gradient checkpointing (`trainer.recompute`) takes less memory and changes no bit."""

import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import Lab, batch, begin, run, spec, state_in

LORAS = [
    spec(rank=4, seed=1),
    spec(rank=16, seed=3, train_mlp=False),
    spec(rank=1, seed=4, train_attn=False, train_unembed=False),
    spec(rank=8, seed=6, train_mlp=False, train_attn=False),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputing_activations_changes_no_bit_of_any_adapter(lab: Lab, dtype: str) -> None:
    parts = [
        batch(9, [30, 6], slot=3, lora=LORAS[0]),
        batch(5, [1], slot=0, lora=LORAS[1], loss="ppo"),
        batch(7, [17, 17, 40], slot=1, lora=LORAS[2], loss="gspo"),
        batch(8, [33], slot=2, lora=LORAS[3]),
        batch(8, [12], slot=2, lora=LORAS[3], backward=False),
    ]
    found = []
    for engine in (lab.engine("qwen3", dtype=dtype), lab.engine("qwen3", dtype=dtype, recompute=True)):
        for part in parts:
            begin(engine, part.slot, part.lora)
        results = run(engine, *parts) + run(engine, *parts)
        found.append((results, [state_in(engine, part.slot).gradients for part in parts]))

    (plain, gradients), (recomputed, gradients_again) = found
    for result, other in zip(recomputed, plain, strict=True):
        assert result.logprobs.tobytes() == other.logprobs.tobytes()
        assert result.metrics == other.metrics
    for one, other in zip(gradients, gradients_again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_recomputing_keeps_less_than_half_between_forward_and_backward(lab: Lab) -> None:
    kept = []
    for engine in (lab.engine("llama"), lab.engine("llama", recompute=True)):
        part = batch(1, [64, 64], lora=LORAS[0])
        begin(engine, 0, part.lora)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(engine, part)
        kept.append(sum(sizes))

    assert kept[1] < kept[0] / 2
