"""From a `Sample` off the wire to jobs an engine may trust. Pure: everything is checked here, once."""

from dataclasses import dataclass

from ..bus.errors import InvalidData, InvalidRequest
from ..bus.ids import RequestId
from ..bus.messages import Sample
from .engine import Job, VersionKey
from .facts import ModelFacts

# vLLM silently raises a lower temperature to the one, and refuses a higher one than the other.
_LOWEST_TEMPERATURE = 0.01
_HIGHEST_TEMPERATURE = 2.0
_MOST_SAMPLES = 1024
_MOST_STOPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """version None is the base model. jobs: empty when only the prompt is to be scored."""

    version: VersionKey | None
    prompt: tuple[int, ...]
    jobs: tuple[Job, ...]
    stop_strings: tuple[str, ...]
    score_prompt: bool
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
    version = _version(sample)
    seed = fresh_seed if sample.seed is None else sample.seed
    max_tokens = min(sample.max_tokens, facts.context_tokens - len(prompt))
    stop_tokens = facts.end_tokens if sample.stop_tokens is None else sample.stop_tokens
    jobs = tuple(
        Job(
            key=f"{request}/{index}",
            version=version,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=sample.temperature,
            top_k=sample.top_k,
            top_p=sample.top_p,
            seed=nth_seed(seed, index),
            stop_tokens=stop_tokens,
        )
        for index in range(sample.num_samples if max_tokens else 0)
    )
    return Plan(
        version=version,
        prompt=prompt,
        jobs=jobs,
        stop_strings=sample.stop_strings,
        score_prompt=sample.prompt_logprobs,
        stream=sample.stream,
    )


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
    if prompt.size >= facts.context_tokens:
        raise InvalidData(
            f"the prompt has {prompt.size} tokens; with an answer of at least one "
            f"it must fit into {facts.context_tokens}"
        )
    return tuple(prompt.tolist())


def _check_fields(sample: Sample, facts: ModelFacts) -> None:
    scores_only = sample.prompt_logprobs and sample.max_tokens == 0
    if sample.max_tokens < 1 and not scores_only:
        raise InvalidRequest("max_tokens must be at least 1, or 0 together with prompt_logprobs")
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
