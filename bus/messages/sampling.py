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
    prompt_logprobs asks for log p(t_i | t_<i) of the prompt. max_tokens is cut to what the model's
    context leaves, and may be 0 when anything is asked of the prompt. Then the prompt may also fill
    the context: the samples, if any were wanted, are empty and end with "length".

    What else can be asked of the prompt: topk_prompt_logprobs, the k likeliest tokens of every
    position; prompt_targets [P - 1, K], token ids to score for positions 1 to P - 1, -1 for none, at
    least one in all; prompt_alt_tokens, k tokens for each of those positions, drawn independently of
    each other and with replacement from softmax(logits / temperature), the likeliest at temperature 0;
    top_k and top_p do not count. The draws depend on the seed, the position and k. All logprobs of
    the prompt are at temperature 1, over the whole vocabulary. prompt_last_n, 1 to P - 1: only the last n
    positions get prompt_logprobs and topk_prompt_logprobs (None: all); it needs prompt_logprobs, and
    does not change what targets and alternatives get.
    topk_sample_logprobs: the k likeliest tokens beside every sampled one, at the request's temperature.
    Bounds: each k at most 1024 and, but for draws, the vocabulary; 2^22 logprobs for a prompt's
    positions together, 2^23 for those of the samples.
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
    prompt_logprobs [P] (NaN where not scored, as the first is) or empty. version 0 is the base model.

    What was not asked for is empty. prompt_topk_* [P, K]: likeliest first. prompt_target_logprobs
    [P - 1, K] and prompt_alt_* [P - 1, K]: row i belongs to position i + 1. What was not scored is
    token -1 and logprob NaN: the first position, those before the last n, targets of -1.
    sample_topk_* [S, K]: likeliest first. prompt_cached_tokens: tokens of the prompt whose attention
    states were there when the request came, so that it did not have to compute them even once.
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
