"""Samples as text: prompts become Samples on the bus, and results become JSON. Pure.

Legend: P = tokens of a prompt.
"""

from collections.abc import Sequence

import numpy as np

from ...bus.errors import InvalidRequest
from ...bus.ids import AdapterId
from ...bus.messages import Sample, SampleResult
from ..records import Json
from .bodies import Prompt, SampleBody, SamplingBody
from .passes import finite


def prompts_of(body: SampleBody) -> list[Prompt]:
    """Raises InvalidRequest: not either one prompt or several."""
    if (body.prompt is None) == (body.prompts is None):
        raise InvalidRequest("give prompts, a list, or one prompt")
    return [body.prompt] if body.prompt is not None else body.prompts or []


def sample_of(adapter: AdapterId | None, prompt: Sequence[int], params: SamplingBody) -> Sample:
    """A sample from the newest published version. prompt [P]."""
    strings: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None
    match params.stop:
        case str(text):
            strings = (text,)
        case [str(), *_] as texts:
            strings = tuple(text for text in texts if isinstance(text, str))
        case list() as ids:
            tokens = tuple(id_ for id_ in ids if isinstance(id_, int))
    return Sample(
        adapter=adapter,
        version=None,
        prompt=np.array(prompt, dtype=np.int64),
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        num_samples=params.num_samples,
        stop_tokens=tokens,
        stop_strings=strings,
    )


def result_of(sample: Sample, result: SampleResult) -> dict[str, Json]:
    """One prompt's answer. With its prompt_tokens, each of its samples is a row for importance_sampling
    and the like; version 0 is the base model."""
    ends = np.cumsum(result.lengths)[:-1]
    parts = zip(
        result.texts,
        np.split(result.tokens, ends),
        np.split(result.logprobs, ends),
        result.stop_reasons,
        strict=True,
    )
    return {
        "version": result.version,
        "engine": result.engine,
        "prompt_tokens": sample.prompt.tolist(),
        "samples": [
            {"text": text, "tokens": tokens.tolist(), "logprobs": [*finite(logprobs)], "stop_reason": reason}
            for text, tokens, logprobs, reason in parts
        ],
    }
