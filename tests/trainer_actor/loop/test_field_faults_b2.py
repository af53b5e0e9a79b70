"""Faults of other systems in swapping and storing training states; each test's name has its number.

`test_field_faults.py` says which tests elsewhere prove the others.
"""

import json
from collections.abc import Callable

import numpy as np
import pytest
from loractl.bus.messages import (
    CheckpointSaved,
    DeleteAdapter,
    Done,
    ExportWeights,
    LoadCheckpoint,
    PublishAdapter,
    SaveCheckpoint,
    StateLoaded,
    VersionWritten,
    WeightsExported,
)
from loractl.tests.trainer_actor.loop.harness import Adapter, Office, create, same
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import load_file

Serve = Callable[..., Office]


def saved(adapter: Adapter, name: str) -> dict[str, np.ndarray]:
    """Every tensor of the adapter's state."""
    adapter.run(SaveCheckpoint, CheckpointSaved, name=name)
    [file] = adapter.office.layout.checkpoint(adapter.id, name).glob("*/state.safetensors")
    return load_file(file)


def window(adapter: Adapter, seed: int) -> None:
    adapter.forward_backward(seed)
    adapter.step(weight_decay=0.1, grad_clip_norm=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_b2_02_every_piece_and_counter_of_a_state_comes_back(serve: Serve, dtype: str) -> None:
    office = serve("trainer.slots=1", f"model.dtype={dtype}")
    adapter = create(office, "poet")
    window(adapter, 1)
    window(adapter, 2)
    adapter.forward_backward(3)
    before = saved(adapter, "before")
    for seed in range(4, 7):
        window(adapter, seed)

    loaded = adapter.run(LoadCheckpoint, StateLoaded, source=adapter.id, name="before")
    after = saved(adapter, "after")
    step = adapter.step()

    assert {name.partition("/")[0] for name in before} == {"main", "gradients", "exp_avg", "exp_avg_sq"}
    assert before.keys() == after.keys()
    assert all(same([before[name]], [after[name]]) for name in before)
    assert (loaded.step, step.step, step.tokens) == (2, 3, 12)


def test_b2_03_an_adapter_that_takes_the_place_of_the_one_just_deleted_begins_fresh(serve: Serve) -> None:
    office = serve("trainer.slots=1")
    first = create(office, "poet")
    fresh = saved(first, "fresh")
    window(first, 1)
    first.forward_backward(2)  # it lies on the device, with gradients and moments, when it goes

    gone = office.send(DeleteAdapter(adapter=first.id))
    second = create(office, "poet")

    assert isinstance(office.wait(gone), Done)
    begun = saved(second, "begun")
    assert begun.keys() == fresh.keys()
    assert all(same([begun[name]], [fresh[name]]) for name in fresh)
    assert second.step().applied is False


def test_b2_08_seeds_draw_what_they_draw_wherever_the_adapter_lies(serve: Serve) -> None:
    office = serve("trainer.slots=2")
    names = ("one", "other", "third", "again")
    adapters = [create(office, name, seed=seed) for name, seed in zip(names, (1, 2, 3, 1), strict=True)]
    for adapter in reversed(adapters):
        adapter.forward_backward(1, forward_only=True)  # in whatever slot

    states = [saved(adapter, "fresh") for adapter in adapters]

    drawn = [name for name in states[0] if "lora_A" in name]
    assert all(same([states[0][name]], [states[3][name]]) for name in states[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not any(same([states[one][name]], [states[other][name]]) for name in drawn)


@pytest.mark.timeout(120)
def test_b2_09_the_padding_of_a_rank_never_matters_nor_leaves(serve: Serve) -> None:
    """Rank 3 lies in a row for 8. A hundred steps beside wider neighbours are a hundred steps alone."""
    files = []
    for neighbours in (0, 2):
        office = serve("trainer.slots=2", "trainer.max_rank=16")
        others = [create(office, f"other-{number}", rank=16) for number in range(neighbours)]
        adapter = create(office, "poet", rank=3)
        for number in range(100):
            window(adapter, number)
            for other in others[: number % 3]:
                other.forward_backward(number)
        exported = adapter.run(ExportWeights, WeightsExported)
        files.append(exported.safetensors.tobytes())

    assert files[0] == files[1]
    for name, tensor in read_safetensors(files[0]).items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 3
        assert tensor.any(axis=1 if "lora_A" in name else 0).all()


def test_b2_10_the_alpha_that_was_asked_for_is_computed_with_and_exported(serve: Serve) -> None:
    office = serve()
    said = {}
    for alpha in (1.0, 4.0, 7.5):
        adapter = create(office, f"alpha-{alpha}", rank=4, alpha=alpha)
        adapter.forward_backward(1)
        adapter.step(rate=0.01)
        said[alpha] = adapter.forward_backward(2, forward_only=True).logprobs
        record = adapter.run(PublishAdapter, VersionWritten).record
        config = json.loads(adapter.run(ExportWeights, WeightsExported).config_json)

        assert (config["r"], config["lora_alpha"], record.lora.alpha) == (4, alpha, alpha)

    assert not same([said[1.0]], [said[4.0]])
    assert not same([said[4.0]], [said[7.5]])
