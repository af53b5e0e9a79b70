"""The SDK as the tests use it: small datums, what they lead to, and the base model as a reference.

Legend: N = positions of a datum, K = targets of a position, V = vocabulary.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loractl.tests.tinker_bridge.served import MODEL

tinker = pytest.importorskip("tinker", reason="the SDK drives these tests")
types = tinker.types

VOCABULARY = 1024  # of the tiny model
RANK = 4
RATE = types.AdamParams(learning_rate=1e-2)
# A loss over positions that were sampled, with old log probabilities near the model's own (-ln 1024).
OLD = -7.0


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random ones, but none of the special ones."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


def prompt(*ids: int) -> Any:
    return types.ModelInput.from_ints([*ids])


def datum(ids: Sequence[int], **inputs: Any) -> Any:
    """Next-token prediction on ids, unless inputs say otherwise: N = len(ids) - 1."""
    given = {"target_tokens": [*ids[1:]], **inputs}
    return types.Datum(model_input=prompt(*ids[:-1]), loss_fn_inputs=given)


def text(count: int = 9, seed: int = 0) -> Any:
    """A datum for cross_entropy, all weights 1."""
    return datum(tokens(count, seed), weights=[1.0] * (count - 1))


def rewarded(count: int = 9, seed: int = 0, **more: Any) -> Any:
    """A datum for the other losses: advantages of both signs, old log probabilities around OLD."""
    random = np.random.default_rng(seed + 1000)
    old = (OLD + random.normal(size=count - 1)).astype(np.float32)
    advantages = random.normal(size=count - 1).astype(np.float32)
    return datum(tokens(count, seed), logprobs=old, advantages=advantages, **more)


def adapter(service: Any, **settings: Any) -> Any:
    """A fresh training client."""
    return service.create_lora_training_client(MODEL, **{"rank": RANK, "seed": 1, **settings}).result()


def step(client: Any, data: Sequence[Any], loss: str = "cross_entropy", **more: Any) -> Any:
    """One forward_backward and one optim_step, sent together; the result of the first."""
    running = client.forward_backward([*data], loss, more.get("config"))
    client.optim_step(more.get("params", RATE)).result()
    return running.result()


def logprobs(client: Any, data: Sequence[Any]) -> list[np.ndarray]:
    """What the trainer says of each datum's targets."""
    return logprobs_of(client.forward([*data], "cross_entropy").result())


def rows_of(sampler: Any, ids: Sequence[int]) -> np.ndarray:
    """[N - 1, V]: what a sampler says of every token behind each of ids but the last."""
    one = types.SamplingParams(max_tokens=1)
    answer = sampler.sample(prompt(*ids), 1, one, topk_prompt_logprobs=VOCABULARY).result()
    found = answer.topk_prompt_logprobs_np
    rows = np.full((len(ids), VOCABULARY), np.nan, dtype=np.float32)
    np.put_along_axis(rows, found.token_ids, found.logprobs, axis=1)
    return rows[1:]


def logprobs_of(output: Any) -> list[np.ndarray]:
    return [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]


def same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Bit for bit."""
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def near(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], most: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(np.abs(one - other).max() <= most for one, other in pairs)


class Reference:
    """The base model without any of us."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model = model.eval()

    def all_logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """[N, V]: log p of every next token behind each of ids."""
        with torch.no_grad():
            logits = self._model(torch.tensor([[*ids]])).logits[0]
        return torch.log_softmax(logits.float(), -1).numpy()

    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """[N - 1]: log p of each of ids but the first, given those before it."""
        rows = self.all_logprobs(ids[:-1])
        return rows[np.arange(len(ids) - 1), list(ids[1:])]


@cache
def reference(directory: Path) -> Reference:
    return Reference(directory)
