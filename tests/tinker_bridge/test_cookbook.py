"""Recipes of the Tinker cookbook, unmodified, against a whole service.

Those that do not depend on each other run at once, except the two that others are compared with: they have
the service to themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from loractl.tests.daemon.real_daemon import until
from loractl.tests.tinker_bridge.cookbook import Cookbook, Metrics, Recipe, cookbook, undecided
from loractl.tests.tinker_bridge.sdk import adapter, logprobs, reference, step, text, tokens
from loractl.tests.tinker_bridge.served import Served

pytest.importorskip("tinker_cookbook", reason="its recipes are what is tested")

STEPS = 8
LN_2 = 0.693147


@pytest.fixture(scope="module")
def book(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cookbook]:
    with cookbook(served, tmp_path_factory.mktemp("cookbook")) as made:
        yield made


@pytest.fixture(scope="module")
def begun(service: Any, book: Cookbook) -> dict[str, str]:
    """Saved states to begin with: fresh ones, and one that half knows an answer."""
    fresh = {name: adapter(service, seed=seed) for name, seed in (("sl", 1), ("chat", 2), ("answer", 3))}
    undecided(fresh["answer"])
    return {name: client.save_state("begin").result().path for name, client in fresh.items()}


@dataclass(frozen=True)
class Alone:
    sl: Metrics
    chat: Metrics


@pytest.fixture(scope="module")
def alone(book: Cookbook, begun: dict[str, str]) -> Alone:
    """One after the other, each with the service to itself."""
    book.begin_with("sl", begun["sl"])
    book.begin_with("chat", begun["chat"])
    sl = book.supervised_loop("sl", max_steps=STEPS).metrics()
    return Alone(sl, book.chat("chat", epochs=2).metrics())


def numbers(found: Metrics) -> Metrics:
    """All but what tells the time, and what is told once at the end of everything."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("time", "tokens/"))}
        for row in found
    ]


def series(found: Metrics, name: str) -> list[float]:
    return [row[name] for row in found if name in row]


def falls(losses: list[float]) -> bool:
    return losses[-1] < 0.8 * losses[0]


def test_recipes_lower_their_losses(alone: Alone):
    assert len(alone.sl) == STEPS
    assert falls(series(alone.sl, "train_mean_nll"))
    assert falls(series(alone.chat, "train_mean_nll"))
    assert all(rate > 0 for rate in series(alone.sl, "grad_norm"))


def test_two_recipes_at_once_train_as_each_does_alone(book: Cookbook, begun: dict[str, str], alone: Alone):
    book.begin_with("sl at once", begun["sl"])
    book.begin_with("chat at once", begun["chat"])

    sl = book.supervised_loop("sl at once", max_steps=STEPS)
    chat = book.chat("chat at once", epochs=2)

    assert numbers(sl.metrics()) == numbers(alone.sl)
    assert numbers(chat.metrics()) == numbers(alone.chat)


@pytest.fixture(scope="module")
def ended(book: Cookbook, begun: dict[str, str]) -> dict[str, Recipe]:
    """Two that are gone on with: one is killed, the other ends after one epoch."""
    book.begin_with("killed", begun["sl"])
    book.begin_with("resumed", begun["chat"])
    return {"killed": book.supervised_loop("killed"), "resumed": book.chat("resumed", epochs=1)}


def test_a_recipe_that_was_killed_goes_on_from_its_checkpoint(
    book: Cookbook, alone: Alone, ended: dict[str, Recipe]
):
    killed = ended["killed"]
    assert until(lambda: len(killed.checkpoints()) > 1)
    killed.process.kill()
    killed.process.wait()
    saved = killed.checkpoints()[-1]["batch"]
    (killed.log / "metrics.jsonl").unlink()

    resumed = book.supervised_loop("killed", max_steps=max(STEPS, saved + 1)).metrics()

    assert saved >= 2
    assert resumed[0]["step"] == saved
    assert numbers(resumed)[: STEPS - saved] == numbers(alone.sl)[saved:]


def test_a_finished_recipe_goes_on_for_another_epoch_with_its_optimizer(
    book: Cookbook, alone: Alone, ended: dict[str, Recipe]
):
    once = ended["resumed"].metrics()

    twice = book.chat("resumed", epochs=2).metrics()

    assert len(once) == 3
    # How far it had got was told of one epoch then.
    assert but_progress(numbers(twice)) == but_progress(numbers(alone.chat))


def but_progress(found: Metrics) -> Metrics:
    return [{name: value for name, value in row.items() if name != "progress"} for row in found]


@pytest.fixture(scope="module")
def crowd(book: Cookbook, begun: dict[str, str]) -> dict[str, Recipe]:
    """Recipes that run at once."""
    started = {}
    for loss in ("stable_reinforce", "importance_sampling"):
        book.begin_with(loss, begun["answer"])
        settings = {"batch_size": 2, "group_size": 8, "max_tokens": 12, "learning_rate": 0.001}
        started[loss] = book.start("rl_loop", loss, max_steps=8, loss_fn=loss, **settings)
    started["math_rl"] = book.start(
        "math_rl.train",
        "math_rl",
        renderer_name="qwen3",
        env="gsm8k",
        load_checkpoint_path=begun["answer"],
        group_size=8,
        groups_per_batch=2,
        max_tokens=12,
        learning_rate=0.001,
        max_steps=4,
        eval_every=2,
    )
    started["dpo"] = book.start(
        "preference.dpo.train",
        "dpo",
        renderer_name="qwen3",
        batch_size=8,
        max_length=256,
        learning_rate=0.001,
        max_steps=3,
    )
    started["sdft"] = book.start(
        "sdft.train",
        "sdft",
        renderer_name="qwen3",
        groups_per_batch=4,
        max_tokens=6,
        lora_rank=8,
        topk=5,
        max_steps=2,
        eval_every=0,
    )
    return started


@pytest.mark.parametrize("loss", ["stable_reinforce", "importance_sampling"])
def test_reinforcement_makes_the_rewarded_answer_likely(crowd: dict[str, Recipe], loss: str):
    rewards = series(crowd[loss].metrics(), "reward/total")

    # It began at one half; no seed makes the samples the same again.
    assert fmean(rewards[-4:]) > 0.7


def test_the_sampler_and_the_trainer_agree_before_and_after_steps(crowd: dict[str, Recipe]):
    found = crowd["math_rl"].metrics()

    assert max(series(found, "grad_norm")) > 1.0
    for name in ("optim/kl_sample_train_v1", "optim/kl_sample_train_v2"):
        assert len(series(found, name)) == 4
        assert max(map(abs, series(found, name))) < 1e-5


def test_preferences_begin_undecided_and_are_learned(crowd: dict[str, Recipe]):
    losses = series(crowd["dpo"].metrics(), "dpo_loss")

    assert losses[0] == pytest.approx(LN_2, abs=1e-5)
    assert falls(losses)


def test_a_student_learns_from_its_teachers_likeliest_tokens(crowd: dict[str, Recipe]):
    found = crowd["sdft"].metrics()

    assert len(found) == 2
    assert all(0 < entropy < 1.61 for entropy in series(found, "sdft/mean_teacher_entropy"))  # ln 5
    assert all(norm > 0 for norm in series(found, "grad_norm"))


def test_a_download_scores_as_the_server_does(service: Any, served: Served, tmp_path: Path):
    from tinker_cookbook import weights

    # The base model's unembedding is its embedding, too: merged into that, it would change both.
    client = adapter(service, train_unembed=False)
    step(client, [text()])
    path = client.save_state("merged").result().path

    weights.download(tinker_path=path, output_dir=str(tmp_path / "adapter"))
    weights.build_hf_model(
        base_model=str(served.model),
        adapter_path=str(tmp_path / "adapter"),
        output_path=str(tmp_path / "model"),
    )

    (expected,) = logprobs(client, [text(seed=5)])
    assert np.abs(reference(tmp_path / "model").logprobs(tokens(9, 5)) - expected).max() < 1e-5
    assert np.abs(reference(served.model).logprobs(tokens(9, 5)) - expected).max() > 0.1
