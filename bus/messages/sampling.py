"""Requests to a sampler, and its answers.

Legend: P = prompt tokens, S = sampled tokens of all sequences end to end, N = sequences.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ids import AdapterId, RequestId
from .base import EngineName, Floats, Ints, Message, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """Continue a prompt. adapter None is the base model; version None is the newest published.

    The broker fills in `version` when it admits the request, so "latest" is decided once.
    temperature 0 is greedy. top_k -1 and top_p 1 are off. seed None draws one; sample i of
    num_samples uses seed + i. stop_tokens None stops at the model's own end tokens, an empty
    tuple never stops early. A stop token is part of the output; stop strings are matched in the
    decoded text, which ends before the match, while the tokens end with the one that completes it.
    prompt_logprobs asks for log p(t_i | t_<i) of the prompt, at temperature 1; with it, max_tokens
    may be 0. max_tokens is cut to what the model's context leaves.
    """

    kind: ClassVar[str] = "sample"
    adapter: AdapterId | None
    version: int | None
    prompt: Ints
    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    num_samples: int = 1
    stop_tokens: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Message):
    """Stop a Sample that is under way; it ends with stop reason "abort"."""

    kind: ClassVar[str] = "abort"
    target: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleChunk(Message):
    """Part of a streamed answer: tokens just sampled for sequence `index`."""

    kind: ClassVar[str] = "sample_chunk"
    index: int
    tokens: Ints
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult(Message):
    """The whole answer to Sample: sequences end to end, as lengths [N], tokens [S], logprobs [S].

    logprobs are log_softmax(logits / temperature) of the sampled tokens (temperature 1 for greedy),
    over the whole vocabulary: top_k and top_p do not change them.
    prompt_logprobs [P] (first entry NaN) or empty. version 0 is the base model.
    """

    kind: ClassVar[str] = "sample_result"
    version: int
    engine: EngineName
    lengths: Ints
    tokens: Ints
    logprobs: Floats
    texts: tuple[str, ...]
    stop_reasons: tuple[StopReason, ...]
    prompt_logprobs: Floats
