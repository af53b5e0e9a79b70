"""What a sampling engine is: the Protocol that vLLM's and the embedded torch loop both fulfil.

An engine speaks tokens only. Text, stop strings, streams, tenants, reference counts and the choice
between engines belong to the actor (`actor.py` and the pure files beside it). One contract suite in
`tests/sampler_actor` runs over both engines.

Legend: P = prompt tokens, K = choices at one position.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ..bus.ids import AdapterId
from ..bus.messages import EngineName, Floats, Ints, StopReason, VersionRecord


class VersionKey(NamedTuple):
    """One published version of one adapter, for ever: numbers are never used again."""

    adapter: AdapterId
    number: int


def key_of(record: VersionRecord) -> VersionKey:
    return VersionKey(record.adapter, record.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """All that an engine is built from; resolved once by the actor, "auto" is gone.

    context_tokens: prompt and answer together never exceed it. max_rank: of any LoRA to come.
    max_loras: versions that one step may mix; max_loaded: versions kept in memory at one time.
    max_concurrent: jobs handed to the engine at one time; beside them it sees one probe at most.
    """

    model_path: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    context_tokens: int
    threads: int
    max_rank: int
    max_loras: int
    max_loaded: int
    max_concurrent: int
    max_batched_tokens: int
    kv_cache_bytes: int
    gpu_memory_utilization: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to sample. The actor has checked it: an engine may trust every field.

    key: unique among all jobs of this engine's life. version None is the base model, otherwise it
    has been added. 1 <= max_tokens, and prompt plus max_tokens fit the context. temperature 0 is
    greedy (top_k, top_p and seed then count for nothing). top_k -1 and top_p 1 are off; top_k comes
    first, then top_p over what it left. The same job gives the same tokens, whatever its
    neighbours. stop_tokens are all that stops it early: the model's own end tokens are among them
    when the caller wants them. topk: how many of the likeliest tokens to tell beside each sampled one.
    """

    key: str
    version: VersionKey | None
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_tokens: tuple[int, ...]
    topk: int = 0


class Choices(NamedTuple):
    """The likeliest tokens at one position, likeliest first, and their logprobs."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What came since the last delta: tokens and as many logprobs.

    logprobs are log_softmax(logits / temperature) over the whole vocabulary, before top_k and
    top_p, and at temperature 1 for a greedy job. `finished` is set on the last delta only, which
    may carry no tokens. A stop token is among the tokens. choices: one for each token when the job
    asked for them, at the same temperature; else none. cached: how many tokens of the prompt the
    engine did not have to compute; the same on every delta.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: StopReason | None = None
    choices: tuple[Choices, ...] = ()
    cached: int = 0


def _no_targets() -> Ints:
    return np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreWish:
    """What to say of a prompt. The actor has checked it: an engine may trust every field.

    last: how many positions from the end are to get log p and topk (None: all). topk: how many of
    the likeliest tokens of each of these. targets [P - 1, K]: token ids to score for positions 1 to
    P - 1, -1 for none; [0, 0] when there are none at all. alternatives: so many tokens drawn for each
    position from 1 on, independent of each other, from softmax(logits / temperature), the likeliest
    one at temperature 0; the draws depend on seed, position and number alone.
    """

    last: int | None = None
    topk: int = 0
    targets: Ints = field(default_factory=_no_targets)
    alternatives: int = 0
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What was said of a prompt: every logprob at temperature 1 and over the whole vocabulary.

    logprobs [P]: log p(t_i | t_<i). topk_* [P, topk]: likeliest first. target_logprobs [P - 1, K];
    alternative_* [P - 1, alternatives]. What was not scored is token -1 and logprob NaN, as the first
    position always is. cached: as in `Delta`.
    """

    logprobs: Floats
    topk_tokens: Ints
    topk_logprobs: Floats
    target_logprobs: Floats
    alternative_tokens: Ints
    alternative_logprobs: Floats
    cached: int


# Every token's own log p, and nothing else.
PLAIN_WISH = ScoreWish()


class Engine(Protocol):
    """One base model in memory, and the versions added to it. Used from one asyncio loop.

    Made as `VllmEngine(settings)` or `TorchEngine(settings)`; `engines.open_engine` is the only
    place that imports either.

    An engine that died raises `EngineFailed` from every call but `close`, and ends every stream
    with it; the actor closes it and builds a new one.
    """

    @property
    def name(self) -> EngineName: ...

    async def start(self) -> None:
        """Load the base model. Called once, before anything else.

        Raises:
            EngineFailed: it could not be started; the message says why.
        """

    async def add(self, record: VersionRecord) -> int:
        """Load a version from its directory and return how many modules it bound to.

        A version that is there already is left as it is. Other streams go on undisturbed.

        Raises:
            PublishFailed: files missing, broken or of another shape; the engine is unharmed and
                the version is not there.
        """

    async def remove(self, key: VersionKey) -> None:
        """Forget a version that no job uses; one that is not there is no error.

        After it returns the version's directory may be deleted.
        """

    def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Run a job; deltas come as they are made, the last one has `finished` set.

        Closing the generator early, or cancelling the task that reads it, frees the sequence.
        """

    async def abort(self, job_key: str) -> None:
        """End a job: its stream gets one more delta, `finished` "abort". Unknown keys are ignored."""

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        """Say of a prompt what was wished. It may fill the whole context.

        Raises:
            NotFinite: the model's logits are not finite.
        """

    async def healthy(self) -> bool:
        """False once the engine died and has to be built anew."""

    async def close(self) -> None:
        """Free everything, child processes too. Streams under way end with "abort"; safe to repeat."""
