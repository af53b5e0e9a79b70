"""Requests to a sampler, and its answers.

Legend: P = prompt tokens, S = sampled tokens of all sequences end to end, N = sequences, K = choices
at one position.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..ids import AdapterId, RequestId, TenantId
from .base import EngineName, Floats, Ints, Message, StopReason


def _no_ints() -> Ints:
    return np.zeros((0, 0), dtype=np.int64)


def _no_floats() -> Floats:
    return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """Continue a prompt. adapter None is the base model; version None is the newest published.

    The broker fills in `version` when it admits the request, so "latest" is decided once.
    temperature 0 is greedy. top_k -1 and top_p 1 are off. seed None draws one; sample i of
    num_samples uses seed + i. stop_tokens None stops at the model's own end tokens, an empty
    tuple never stops early; keep_end_tokens adds the model's own to the given ones. A stop token is part
    of the output; stop strings are matched in the decoded text, which ends before the match, while the
    tokens end with the one that completes it.
    prompt_logprobs asks for log p(t_i | t_<i) of the prompt, at temperature 1; with it, max_tokens
    may be 0. max_tokens is cut to what the model's context leaves.

    What else can be asked of the prompt, always at temperature 1 over the whole vocabulary:
    topk_prompt_logprobs, the k likeliest tokens of every position; prompt_targets [P - 1, K], token
    ids to score for positions 1 to P - 1, -1 for none; prompt_alt_tokens, k draws for each of those
    positions from log_softmax(logits / temperature), independent of each other.
    prompt_last_n leaves out all of a prompt but its last n positions (None: all are scored).
    topk_sample_logprobs: the k likeliest tokens beside every sampled one, at the request's temperature.
    owner: the tenant of the adapter when that is another one; whoever sets it has checked that the
    version was made public.
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
    keep_end_tokens: bool = False
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    stream: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_targets: Ints = field(default_factory=_no_ints)
    prompt_alt_tokens: int = 0
    prompt_last_n: int | None = None
    owner: TenantId | None = None


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

    What was not asked for is empty. prompt_topk_* [P, K]: likeliest first; positions that are not
    scored hold token -1 and logprob NaN. prompt_target_logprobs [P - 1, K] and prompt_alt_* [P - 1, K]:
    likewise, and NaN where the request held -1. sample_topk_* [S, K]: likeliest first.
    prompt_cached_tokens: tokens of the prompt whose attention states were there already.
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
    prompt_topk_tokens: Ints = field(default_factory=_no_ints)
    prompt_topk_logprobs: Floats = field(default_factory=_no_floats)
    prompt_target_logprobs: Floats = field(default_factory=_no_floats)
    prompt_alt_tokens: Ints = field(default_factory=_no_ints)
    prompt_alt_logprobs: Floats = field(default_factory=_no_floats)
    sample_topk_tokens: Ints = field(default_factory=_no_ints)
    sample_topk_logprobs: Floats = field(default_factory=_no_floats)
    prompt_cached_tokens: int = 0
