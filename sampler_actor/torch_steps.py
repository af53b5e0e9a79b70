"""The step loop of the embedded engine, without threads: jobs in, events out, one step at a time.

Performs what `torch_plan` decides: rows of the cache come and go, a packed batch runs over the
model, and every sequence whose tokens are all cached samples its next one. A sequence that fails
fails alone.
"""

import math
from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..bus.errors import LoractlError, NotFinite, VersionNotFound
from ..bus.messages import Floats, Ints, StopReason
from .engine import Delta, EngineSettings, Job, Scores, ScoreWish, VersionKey
from .scoring import empty_rows, first_row, scores_of
from .scoring_columns import columns
from .torch_adapter import LoadedAdapter
from .torch_attention import PackedStep, pack
from .torch_cache import KvCache
from .torch_model import PackedModel
from .torch_plan import Sequence, StepLimits, plan_step
from .torch_sampling import Sampled, Uniforms, draw_of, sample

# Logits of a whole prompt over a large vocabulary would take gigabytes.
_LOGITS_BYTES = 32 * 2**20


@dataclass(eq=False, slots=True, kw_only=True)
class Answer(Sequence):
    """A job under way. shared: how much of its prompt a neighbour had computed when it first joined."""

    job: Job
    uniforms: Uniforms
    shared: int | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Score(Sequence):
    """A prompt being scored, less its last token, which nothing is predicted from.

    ids_RW, logprobs_RW: rows and columns as in `scoring`, filled as positions are computed.
    """

    wish: ScoreWish
    last_token: int
    ids_RW: Ints
    logprobs_RW: Floats
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    scores: Scores


Task = Answer | Score
Event = Delta | Scored | LoractlError
Events = list[tuple[str, Event]]
T = TypeVar("T")


def answer(job: Job) -> Answer:
    return Answer(
        key=job.key, version=job.version, tokens=list(job.prompt), job=job, uniforms=Uniforms(job.seed)
    )


def score(key: str, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish) -> Score:
    """There must be a row in which something is wished."""
    ids_RW, logprobs_RW = empty_rows(wish, len(prompt) - 1)
    return Score(
        key=key,
        version=version,
        tokens=list(prompt[:-1]),
        wanted_from=first_row(wish, len(prompt) - 1),
        wish=wish,
        last_token=prompt[-1],
        ids_RW=ids_RW,
        logprobs_RW=logprobs_RW,
    )


class Stepper:
    """Owned by one thread. Each task's key gets events until one of them ends it."""

    def __init__(self, model: PackedModel, settings: EngineSettings) -> None:
        self._model = model
        self._cache = KvCache(model.cache_shape)
        self._running: list[Task] = []
        self._waiting: list[Task] = []
        self._logits_rows = max(1, _LOGITS_BYTES // (4 * model.vocab_size))
        self._limits = StepLimits(
            step_tokens=settings.max_batched_tokens,
            versions=settings.max_loras,
            cache_tokens=_cache_bytes(settings) // model.cache_shape.token_bytes,
        )

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    def close(self) -> Events:
        """Every task ends with "abort"."""
        return [event for key in self.under_way() for event in self.abort(key)]

    def under_way(self) -> list[str]:
        return [task.key for task in (*self._running, *self._waiting)]

    def submit(self, task: Task) -> Events:
        if task.version is not None and not self._model.lora.holds(task.version):
            return [(task.key, _unknown_version(task.version))]
        self._waiting.append(task)
        return []

    def add(self, key: VersionKey, adapter: LoadedAdapter) -> int:
        """Returns how many modules it bound to. A version that is there already stays as it is."""
        self._model.lora.add(key, adapter)
        return self._model.lora.modules(key)

    def remove(self, key: VersionKey) -> Events:
        """Whoever still uses the version ends with an error; nobody else notices."""
        users = [task for task in (*self._running, *self._waiting) if task.version == key]
        for task in users:
            self._forget(task)
        self._model.lora.remove(key)
        return [(task.key, _unknown_version(key)) for task in users]

    def abort(self, task_key: str) -> Events:
        for task in (*self._running, *self._waiting):
            if task.key == task_key:
                self._forget(task)
                return [(task_key, Delta(tokens=(), logprobs=(), finished="abort"))]
        return []

    def step(self) -> Events:
        """Run one step. There must be something to run."""
        packed = pack(self._planned(), self._cache, self._model.device)
        hidden_TH = self._model.hidden(packed)
        return self._read_out(packed, hidden_TH)

    def _planned(self) -> list[tuple[Sequence, int]]:
        """Let sequences go and join as planned; returns how many tokens of which to run."""
        plan = plan_step(self._running, self._waiting, self._limits)
        for task in plan.preempted:
            self._cache.release(task.key)
            self._running.remove(task)
            task.cached = 0
        self._waiting[:0] = plan.preempted
        for task in self._running:
            self._cache.grow(task.key, len(task.tokens))
        for admission in plan.admitted:
            task = admission.sequence
            self._cache.claim(task.key, len(task.tokens))
            if admission.donor is not None:
                self._cache.copy(admission.donor.key, task.key, admission.shared)
            task.cached = admission.shared
            if task.shared is None:
                task.shared = admission.shared
            self._running.append(task)
        del self._waiting[: len(plan.admitted)]
        return [(chunk.sequence, chunk.count) for chunk in plan.chunks]

    def _read_out(self, packed: PackedStep, hidden_TH: Tensor) -> Events:
        """Score what is to be scored, and sample where a sequence's last token has been run."""
        events: Events = []
        sampling: list[tuple[Answer, int]] = []
        first = 0
        for sequence, count in packed.order:
            sequence.cached += count
            if isinstance(sequence, Score):
                events += self._score(sequence, count, hidden_TH[first : first + count])
            elif isinstance(sequence, Answer) and sequence.cached == len(sequence.tokens):
                sampling.append((sequence, first + count - 1))
            first += count
        for part in _parts(sampling, self._logits_rows):
            events += self._sample(part, hidden_TH)
        return events

    def _sample(self, part: Ordered[tuple[Answer, int]], hidden_TH: Tensor) -> Events:
        rows = torch.tensor([row for _, row in part], device=hidden_TH.device)
        logits_NV = self._model.logits(hidden_TH[rows], [task.version for task, _ in part])
        sampled = sample(logits_NV, [draw_of(task.job, task.uniforms) for task, _ in part])
        return [self._advance(task, row) for (task, _), row in zip(part, sampled, strict=True)]

    def _advance(self, task: Answer, sampled: Sampled) -> tuple[str, Event]:
        token, logprob, choices = sampled
        if math.isnan(logprob):
            self._forget(task)
            return task.key, NotFinite("the model's logits are not finite: its adapter has diverged")
        task.tokens.append(token)
        finished: StopReason | None = None
        if token in task.job.stop_tokens:
            finished = "stop"
        elif len(task.tokens) - len(task.job.prompt) == task.job.max_tokens:
            finished = "length"
        if finished:
            self._forget(task)
        delta = Delta(
            tokens=(token,),
            logprobs=(logprob,),
            finished=finished,
            choices=(choices,) if task.job.topk else (),
            cached=task.shared or 0,
        )
        return task.key, delta

    def _score(self, task: Score, count: int, hidden_CH: Tensor) -> Events:
        """Fill the rows of the positions that have just been run."""
        start, wanted = task.cached - count, task.wanted_from or 0
        for rows in _parts(range(max(start, wanted), task.cached), self._logits_rows):
            hidden_NH = hidden_CH[rows[0] - start : rows[-1] + 1 - start]
            logits_NV = self._model.logits(hidden_NH, [task.version] * len(rows))
            following = [*task.tokens, task.last_token][rows[0] + 1 : rows[-1] + 2]
            ids_NW, logprobs_NW = columns(logits_NV, following, task.wish, rows[0])
            task.ids_RW[rows[0] : rows[-1] + 1] = ids_NW.cpu().numpy()
            task.logprobs_RW[rows[0] : rows[-1] + 1] = logprobs_NW.cpu().numpy()
        if task.cached < len(task.tokens):
            return []
        self._forget(task)
        if np.isnan(task.logprobs_RW[wanted:]).any():
            return [(task.key, NotFinite("the prompt's logits are not finite: the adapter has diverged"))]
        scores = scores_of(task.wish, task.ids_RW, task.logprobs_RW, cached=task.shared or 0)
        return [(task.key, Scored(scores))]

    def _forget(self, task: Task) -> None:
        if task in self._running:
            self._running.remove(task)
            self._cache.release(task.key)
        else:
            self._waiting.remove(task)


def _parts(items: Ordered[T], size: int) -> Iterator[Ordered[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _unknown_version(key: VersionKey) -> VersionNotFound:
    return VersionNotFound(f"version {key.number} of adapter {key.adapter} is not loaded here")


def _cache_bytes(settings: EngineSettings) -> int:
    """What the cache may hold. On CUDA: our share of the device, less what the weights took."""
    if settings.device == "cpu":
        return settings.kv_cache_bytes
    _, total = torch.cuda.mem_get_info()
    return max(0, int(total * settings.gpu_memory_utilization) - torch.cuda.memory_allocated())
