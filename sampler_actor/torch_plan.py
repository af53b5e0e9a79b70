"""Which sequences the next step of the embedded engine runs, and how much of each. Pure: no torch.

A step runs one packed batch over the model: one token of every sequence that is answering, and
chunks of the prompts of those that have just joined. Sequences join and leave at every step.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Generic, TypeVar

from .engine import VersionKey

_SMALLEST_ROW_TOKENS = 64
# A shorter shared prefix is computed again rather than waited for and copied.
_WORTH_SHARING_TOKENS = 32
_BLOCK_TOKENS = 64


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One job as the plan sees it.

    tokens: the prompt and what was sampled. cached: how many of them have their keys and values in
    the cache; a sequence samples when all of its tokens are cached. wanted_from: the first position
    whose logits are wanted; what lies before need not be computed if a neighbour has it. None: only
    those of the last position are.
    """

    key: str
    version: VersionKey | None
    tokens: list[int]
    cached: int = 0
    wanted_from: int | None = None


S = TypeVar("S", bound=Sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """step_tokens: positions of one step. versions: adapters of one step. cache_tokens: of all rows."""

    step_tokens: int
    versions: int
    cache_tokens: int


@dataclass(frozen=True, slots=True)
class Admission(Generic[S]):
    """A sequence that joins. The first `shared` tokens of its cache are a copy of the donor's."""

    sequence: S
    donor: S | None = None
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Chunk(Generic[S]):
    """The next `count` tokens of a sequence that are not cached yet."""

    sequence: S
    count: int


@dataclass(frozen=True, slots=True)
class StepPlan(Generic[S]):
    """preempted: give up their cache, and wait, in this order, before all others."""

    preempted: tuple[S, ...]
    admitted: tuple[Admission[S], ...]
    chunks: tuple[Chunk[S], ...]


def row_tokens(tokens: int) -> int:
    """Capacity of the cache row of a sequence: powers of two, so at most half of it lies idle."""
    capacity = _SMALLEST_ROW_TOKENS
    while capacity < tokens:
        capacity *= 2
    return capacity


def plan_step(running: Ordered[S], waiting: Ordered[S], limits: StepLimits) -> StepPlan[S]:
    """Decide the next step. running: in the order in which they joined; waiting: first in line first.

    The oldest sequence always runs, so there is always progress. Who waits is admitted strictly in
    order: nobody is overtaken for ever by those who fit more easily.
    """
    staying, preempted = _within_memory(running, limits)
    admitted = () if preempted else _admissions(staying, waiting, limits)
    chunks = _chunks(staying, admitted, limits)
    return StepPlan(preempted=preempted, admitted=admitted, chunks=chunks)


def _within_memory(running: Ordered[S], limits: StepLimits) -> tuple[list[S], tuple[S, ...]]:
    """Sequences grow; the newest gives way, and computes its cache again when there is room."""
    held = sum(row_tokens(len(s.tokens)) for s in running)
    staying = list(running)
    while held > limits.cache_tokens and len(staying) > 1:
        held -= row_tokens(len(staying.pop().tokens))
    return staying, tuple(running[len(staying) :])


def _admissions(running: Ordered[S], waiting: Ordered[S], limits: StepLimits) -> tuple[Admission[S], ...]:
    joined = list(running)
    admissions: list[Admission[S]] = []
    held = sum(row_tokens(len(s.tokens)) for s in running)
    versions = {s.version for s in running if s.version is not None}
    for newcomer in waiting:
        held += row_tokens(len(newcomer.tokens))
        versions |= {newcomer.version} if newcomer.version is not None else set()
        if joined and (held > limits.cache_tokens or len(versions) > limits.versions):
            break
        donor, shared = _donor(joined, newcomer)
        if donor is not None and donor.cached < shared:
            break  # the donor is still at that prefix: wait for it, then copy
        admissions.append(Admission(newcomer, donor, shared))
        joined.append(newcomer)
    return tuple(admissions)


def _donor(joined: Ordered[S], newcomer: S) -> tuple[S | None, int]:
    """Who of the same version shares the longest prefix. Positions whose logits are wanted are computed anew.

    Keys and values depend on the tokens up to their position and on the version, on nothing else.
    """
    spare = len(newcomer.tokens) - 1 if newcomer.wanted_from is None else newcomer.wanted_from
    best: S | None = None
    longest = _WORTH_SHARING_TOKENS - 1
    for candidate in joined:
        if candidate.version == newcomer.version:
            answering = len(candidate.tokens) - candidate.cached <= 1
            known = candidate.tokens[: candidate.cached] if answering else candidate.tokens
            shared = _common_prefix(known, newcomer.tokens[:spare])
            if shared > longest:
                best, longest = candidate, shared
    return (best, longest) if best is not None else (None, 0)


def _common_prefix(a: Ordered[int], b: Ordered[int]) -> int:
    """Compared by blocks first: equal prompts of thousands of tokens are the usual case."""
    shortest = min(len(a), len(b))
    blocks = range(0, shortest, _BLOCK_TOKENS)
    start = next((i for i in blocks if a[i : i + _BLOCK_TOKENS] != b[i : i + _BLOCK_TOKENS]), shortest)
    return next((i for i in range(start, shortest) if a[i] != b[i]), shortest)


def _chunks(running: Ordered[S], admitted: Ordered[Admission[S]], limits: StepLimits) -> tuple[Chunk[S], ...]:
    """Everyone who answers goes on by one token; prompts share what is left of the step."""
    pending = [(s, len(s.tokens) - s.cached) for s in running]
    pending += [(a.sequence, len(a.sequence.tokens) - a.shared) for a in admitted]
    answering = [Chunk(s, 1) for s, count in pending if count == 1]
    left = limits.step_tokens - len(answering)
    prompts = []
    for sequence, count in pending:
        if count > 1 and left > 0:
            prompts.append(Chunk(sequence, min(count, left)))
            left -= min(count, left)
    return (*answering, *prompts)
