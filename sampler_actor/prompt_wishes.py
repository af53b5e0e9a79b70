"""What a `Sample` asks to be said of its prompt, checked. Pure."""

import numpy as np

from ..bus.errors import InvalidRequest
from ..bus.messages import Ints, Sample
from .engine import ScoreWish
from .facts import ModelFacts

# At one position. vLLM computes as many for every neighbour in the batch, so it is everybody's cost.
MOST_CHOICES = 1024
# Likeliest tokens, targets and alternatives of a whole prompt; each takes 12 bytes of the answer.
_MOST_PROMPT_CHOICES = 2**22


def wish_of(sample: Sample, facts: ModelFacts, *, seed: int) -> ScoreWish | None:
    """None when nothing is asked of the prompt.

    Raises:
        InvalidRequest: a field is out of range, of another shape, or asks for too much.
    """
    _check_counts(sample, facts)
    _check_last(sample)
    targets = _checked_targets(sample, facts)
    by_position = sample.prompt_logprobs or sample.topk_prompt_logprobs > 0
    if not (by_position or targets.size or sample.prompt_alt_tokens):
        return None
    choices = sample.topk_prompt_logprobs + targets.shape[1] + sample.prompt_alt_tokens
    if sample.prompt.size * choices > _MOST_PROMPT_CHOICES:
        raise InvalidRequest(
            f"{choices} logprobs for each of {sample.prompt.size} prompt tokens "
            f"are more than {_MOST_PROMPT_CHOICES}: ask for fewer, or of a shorter prompt"
        )
    return ScoreWish(
        last=sample.prompt_last_n if by_position else 0,
        topk=sample.topk_prompt_logprobs,
        targets=targets,
        alternatives=sample.prompt_alt_tokens,
        temperature=sample.temperature,
        seed=seed,
    )


def _check_counts(sample: Sample, facts: ModelFacts) -> None:
    most = min(MOST_CHOICES, facts.vocab_size)
    if not 0 <= sample.topk_prompt_logprobs <= most:
        raise InvalidRequest(
            f"topk_prompt_logprobs must lie in 0 to {most}, but is {sample.topk_prompt_logprobs}"
        )
    if not 0 <= sample.prompt_alt_tokens <= MOST_CHOICES:
        raise InvalidRequest(
            f"prompt_alt_tokens must lie in 0 to {MOST_CHOICES}, but is {sample.prompt_alt_tokens}"
        )


def _check_last(sample: Sample) -> None:
    last = sample.prompt_last_n
    if last is None:
        return
    if not sample.prompt_logprobs:
        raise InvalidRequest("prompt_last_n applies to prompt logprobs, which were not asked for")
    if not 1 <= last < sample.prompt.size:
        raise InvalidRequest(
            f"prompt_last_n must lie in 1 to {sample.prompt.size - 1}, "
            f"one less than the prompt has tokens, but is {last}"
        )


def _checked_targets(sample: Sample, facts: ModelFacts) -> Ints:
    targets = sample.prompt_targets
    if targets.shape == (0, 0):
        return targets
    rows = sample.prompt.size - 1
    if targets.ndim != 2 or len(targets) != rows:
        raise InvalidRequest(
            f"prompt_targets must have a row for each of the {rows} tokens after the prompt's first, "
            f"but its shape is {list(targets.shape)}"
        )
    if not (targets >= 0).any():
        raise InvalidRequest("prompt_targets names no token to score")
    wrong = targets[(targets < -1) | (targets >= facts.vocab_size)]
    if wrong.size:
        raise InvalidRequest(
            f"prompt_targets holds {int(wrong[0])}; "
            f"this model has tokens 0 to {facts.vocab_size - 1}, and -1 stands for none"
        )
    return targets.astype(np.int64)
