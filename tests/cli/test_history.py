"""An adapter's past: shown, forked and proved, from the journal of a real daemon."""

import json

import pytest
from loractl.client import connect

STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def daemon(loractl, tiny_model):
    outcome = loractl.start(tiny_model, "sampler.count=0", "trainer.threads=1")
    assert outcome.code == 0, outcome.err


@pytest.fixture(scope="module")
def train(loractl, rows):
    def train(name: str, steps: int, *more: str) -> None:
        settings = ("--rank", "4", "--lr", "1e-2", "--batch-size", "4", "--save-every", "4", "--max-steps")
        outcome = loractl("train", rows, "--adapter", name, *settings, str(steps), *more)
        assert outcome.code == 0, outcome.err

    return train


@pytest.fixture(scope="module", autouse=True)
def pirate(train):
    train("pirate", STEPS)


def test_the_history_tells_every_operation_in_the_order_in_which_it_ended(loractl):
    outcome = loractl("adapters", "history", "pirate", "--json")

    data = json.loads(outcome.out)
    operations = [each["operation"] for each in data["operations"]]
    steps = [each["step"] for each in data["operations"] if each["operation"] == "optim_step"]
    assert data["from_creation"]
    assert operations.count("forward_backward") == STEPS
    assert steps == list(range(1, STEPS + 1))
    assert {each["state"] for each in data["operations"]} == {"done"}
    assert "in the journal: all of it" in loractl("adapters", "history", "pirate").err


def test_a_fork_is_what_the_adapter_was_at_that_step_to_the_bit(loractl, train):
    train("short", STEPS // 2)

    outcome = loractl("adapters", "fork", "pirate", "earlier", "--at-step", str(STEPS // 2))

    assert outcome.code == 0, outcome.err
    assert f"earlier is pirate as it was at step {STEPS // 2}" in outcome.err
    assert "not the journal's" not in outcome.err
    assert weights_of(loractl, "earlier") == weights_of(loractl, "short")


def weights_of(loractl, name: str) -> str:
    """The digest of the present weights, as a version has it."""
    with connect(str(loractl.state_dir)) as service:
        return service.open_adapter(name).publish().result().record.digest


def test_a_fork_at_a_step_that_never_was_is_refused_and_leaves_nothing(loractl):
    outcome = loractl("adapters", "fork", "pirate", "later", "--at-step", "999")

    assert outcome.code == 2
    assert "the journal has no step 999 of this adapter; it has" in outcome.err
    assert loractl("adapters", "show", "later").code == 2


def test_an_adapter_is_proved_to_be_what_it_would_be_alone(loractl):
    outcome = loractl("verify", "pirate")

    assert outcome.code == 0, outcome.err
    assert "pirate is to the bit what it would be alone" in outcome.err


def test_an_adapter_that_loaded_a_checkpoint_of_another_is_proved_from_there(loractl):
    with connect(str(loractl.state_dir)) as service:
        pirate = service.open_adapter("pirate")
        pirate.save("kept").result()
        parrot = service.create_adapter_like("parrot", pirate.details.lora)
        parrot.load("kept", source=pirate.id).result()
        parrot.optim_step(1e-3).result()

    outcome = loractl("verify", "parrot")

    assert outcome.code == 0, outcome.err


def test_a_history_of_nobody_is_refused(loractl):
    assert loractl("adapters", "history", "nobody").code == 2
    assert loractl("verify", "nobody").code == 2
