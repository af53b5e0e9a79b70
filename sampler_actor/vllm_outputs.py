"""Reads what vLLM answers. Imports no vllm: the Protocols say what is read of its objects.

Legend: R = rows, W = columns, both as in `scoring`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ..bus.errors import EngineFailed
from ..bus.messages import Floats, Ints, StopReason
from .engine import Choices, Delta


class Said(Protocol):
    """rank: 1 for the likeliest token."""

    logprob: float
    rank: int


class Completion(Protocol):
    """logprobs: for each token what was said of it, and of the likeliest beside it."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Said]] | None
    finish_reason: str | None


class Output(Protocol):
    outputs: Sequence[Completion]
    num_cached_tokens: int | None


class FlatLogprobs(Protocol):
    token_ids: Sequence[int]
    logprobs: Sequence[float]


def delta_of(output: Output, topk: int) -> Delta:
    """What came of a job of one sequence."""
    (sequence,) = output.outputs
    tokens = tuple(sequence.token_ids)
    rows = sequence.logprobs or ()
    return Delta(
        tokens=tokens,
        logprobs=tuple(row[token].logprob for row, token in zip(rows, tokens, strict=True)),
        finished=_stop_reason(sequence.finish_reason),
        choices=tuple(_choices(row, topk) for row in rows) if topk else (),
        cached=output.num_cached_tokens or 0,
    )


def rows_of(told: FlatLogprobs, width: int) -> tuple[Ints, Floats]:
    """The ids and logprobs [R, W] that `vllm_scoring` filled in."""
    ids_RW = np.array(told.token_ids, np.int64).reshape(-1, width)
    return ids_RW, np.array(told.logprobs, np.float32).reshape(-1, width)


def _choices(row: Mapping[int, Said], topk: int) -> Choices:
    """Besides the likeliest, the row holds the sampled token, whose rank may be any."""
    likeliest = sorted((said.rank, token, said.logprob) for token, said in row.items())[:topk]
    return Choices(tuple(token for _, token, _ in likeliest), tuple(logprob for *_, logprob in likeliest))


def _stop_reason(reason: str | None) -> StopReason | None:
    match reason:
        case None:
            return None
        case "stop":
            return "stop"
        case "length":
            return "length"
        case "abort":
            return "abort"
        case _:
            raise EngineFailed(f"vllm ended a request with {reason!r}")
