"""From a `Sample` off the wire to jobs an engine may trust. Pure: everything is checked here, once."""

from dataclasses import dataclass

from ..bus.errors import InvalidData, InvalidRequest
from ..bus.ids import RequestId
from ..bus.messages import Sample
from .engine import Job, ScoreWish, VersionKey
from .facts import ModelFacts
from .prompt_wishes import MOST_CHOICES, wish_of

# vLLM silently raises a lower temperature to the one, and refuses a higher one than the other.
_LOWEST_TEMPERATURE = 0.01
_HIGHEST_TEMPERATURE = 2.0
_MOST_SAMPLES = 1024
_MOST_STOPS = 64
# Of the likeliest tokens of all sampled ones together; each takes 12 bytes of the answer.
_MOST_SAMPLE_CHOICES = 2**23


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """version None is the base model. jobs: empty when only the prompt is to be scored.

    no_room: sequences that were asked for, but the prompt to be scored fills the whole context.
    wish: what to say of the prompt, None for nothing. topk: choices to tell of each sampled token.
    """

    version: VersionKey | None
    prompt: tuple[int, ...]
    jobs: tuple[Job, ...]
    no_room: int
    stop_strings: tuple[str, ...]
    wish: ScoreWish | None
    prompt_logprobs: bool
    topk: int
    stream: bool


def plan_sample(sample: Sample, request: RequestId, facts: ModelFacts, *, fresh_seed: int) -> Plan:
    """Check every field and cut max_tokens to what the context leaves.

    request: makes the jobs' keys, so it must be unique on this actor. fresh_seed: used when the
    caller gave none.

    Raises:
        InvalidData: the prompt is empty, holds what is not in the vocabulary, or is too long.
        InvalidRequest: any other field is out of range.
    """
    _check_fields(sample, facts)
    prompt = _checked_prompt(sample, facts)
    seed = fresh_seed if sample.seed is None else sample.seed
    wish = wish_of(sample, facts, seed=nth_seed(seed, 0))
    room = facts.context_tokens - len(prompt)
    _check_length(sample, facts, scored=wish is not None)
    if wish is None and not sample.max_tokens:
        raise InvalidRequest("max_tokens must be at least 1, or 0 together with scores of the prompt")
    max_tokens = min(sample.max_tokens, room)
    _check_choices(sample, facts, max_tokens=max_tokens)
    jobs = tuple(
        _job(sample, facts, f"{request}/{index}", prompt, max_tokens=max_tokens, seed=nth_seed(seed, index))
        for index in range(sample.num_samples if max_tokens else 0)
    )
    return Plan(
        version=_version(sample),
        prompt=prompt,
        jobs=jobs,
        no_room=sample.num_samples if sample.max_tokens and not room else 0,
        stop_strings=sample.stop_strings,
        wish=wish,
        prompt_logprobs=sample.prompt_logprobs,
        topk=sample.topk_sample_logprobs,
        stream=sample.stream,
    )


def _job(
    sample: Sample, facts: ModelFacts, key: str, prompt: tuple[int, ...], *, max_tokens: int, seed: int
) -> Job:
    return Job(
        key=key,
        version=_version(sample),
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        seed=seed,
        stop_tokens=_stop_tokens(sample, facts),
        topk=sample.topk_sample_logprobs,
    )


def _stop_tokens(sample: Sample, facts: ModelFacts) -> tuple[int, ...]:
    if sample.stop_tokens is None:
        return facts.end_tokens
    return (*sample.stop_tokens, *(facts.end_tokens if sample.keep_end_tokens else ()))


def nth_seed(seed: int, index: int) -> int:
    """Sample i uses seed + i, kept within what generators take: 63 bits."""
    return (seed + index) % 2**63


def _version(sample: Sample) -> VersionKey | None:
    if sample.adapter is None:
        return None
    if sample.version is None:
        raise InvalidRequest("the version of this adapter was not decided: send the request to the daemon")
    return VersionKey(sample.adapter, sample.version)


def _checked_prompt(sample: Sample, facts: ModelFacts) -> tuple[int, ...]:
    prompt = sample.prompt
    if prompt.ndim != 1 or prompt.size == 0:
        raise InvalidData("the prompt is empty: give at least one token")
    if prompt.min() < 0 or prompt.max() >= facts.vocab_size:
        wrong = next(int(t) for t in prompt if not 0 <= t < facts.vocab_size)
        raise InvalidData(
            f"the prompt holds token {wrong}; this model has tokens 0 to {facts.vocab_size - 1}"
        )
    return tuple(prompt.tolist())


def _check_length(sample: Sample, facts: ModelFacts, *, scored: bool) -> None:
    """A prompt that is scored may fill the context; to sample from it there must be room for one token."""
    length = sample.prompt.size + (0 if scored else 1)
    if length > facts.context_tokens:
        parts = "" if scored else f" ({sample.prompt.size} of the prompt and at least 1 of the answer)"
        raise InvalidData(f"sequence length {length}{parts} exceeds max {facts.context_tokens}")


def _check_fields(sample: Sample, facts: ModelFacts) -> None:
    if sample.max_tokens < 0:
        raise InvalidRequest(f"max_tokens must not be negative, but is {sample.max_tokens}")
    if not 1 <= sample.num_samples <= _MOST_SAMPLES:
        raise InvalidRequest(f"num_samples must lie in 1 to {_MOST_SAMPLES}")
    temperature = sample.temperature
    if not (temperature == 0 or _LOWEST_TEMPERATURE <= temperature <= _HIGHEST_TEMPERATURE):  # NaN neither
        raise InvalidRequest(
            f"temperature must be 0 (greedy) or lie in {_LOWEST_TEMPERATURE} to {_HIGHEST_TEMPERATURE:g}"
        )
    if sample.top_k != -1 and sample.top_k < 1:
        raise InvalidRequest("top_k must be at least 1, or -1 for off")
    if not 0 < sample.top_p <= 1:
        raise InvalidRequest("top_p must lie in (0, 1]; 1 is off")
    if any(not 0 <= token < facts.vocab_size for token in sample.stop_tokens or ()):
        raise InvalidRequest(f"stop_tokens must lie in 0 to {facts.vocab_size - 1}")
    if len(sample.stop_tokens or ()) > _MOST_STOPS or len(sample.stop_strings) > _MOST_STOPS:
        raise InvalidRequest(f"at most {_MOST_STOPS} stop tokens and {_MOST_STOPS} stop strings")
    if not all(sample.stop_strings):
        raise InvalidRequest("a stop string is empty")


def _check_choices(sample: Sample, facts: ModelFacts, *, max_tokens: int) -> None:
    """Of sampled tokens; those of the prompt are `prompt_wishes`' business."""
    topk, most = sample.topk_sample_logprobs, min(MOST_CHOICES, facts.vocab_size)
    if not 0 <= topk <= most:
        raise InvalidRequest(f"topk_sample_logprobs must lie in 0 to {most}, but is {topk}")
    if sample.num_samples * max_tokens * topk > _MOST_SAMPLE_CHOICES:
        raise InvalidRequest(
            f"topk_sample_logprobs {topk} for {sample.num_samples} samples of {max_tokens} tokens "
            f"is more than {_MOST_SAMPLE_CHOICES} logprobs: ask for fewer of one of them"
        )
