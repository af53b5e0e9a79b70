"""What is said of a prompt, as rows and columns: the form in which both engines gather it. Pure numpy.

Row r speaks of prompt token r + 1, which the tokens up to r predict. Its columns are the token itself,
the likeliest `topk`, the targets and the alternatives, in this order: a token id and a logprob each.

Legend: P = prompt tokens, R = rows (P - 1), W = columns, N = some rows side by side, K = draws of a row.
"""

import hashlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bus.messages import Floats, Ints
from .engine import Scores, ScoreWish

Item = TypeVar("Item", bound=np.generic)
# The token id of a cell that nobody filled.
EMPTY = -1
# Philox makes so many numbers for one count.
_AT_ONCE = 4


def width(wish: ScoreWish) -> int:
    """W: columns of a row."""
    return 1 + wish.topk + int(wish.targets.shape[1]) + wish.alternatives


def first_row(wish: ScoreWish, rows: int) -> int:
    """The first row in which anything is wanted; `rows` when nothing is."""
    if wish.alternatives or wish.last is None:
        return 0
    named = np.flatnonzero((wish.targets >= 0).any(axis=-1))
    return min(rows - wish.last, int(named[0]) if named.size else rows)


def uniforms(seed: int, first: int, rows: int, draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) [N, K] for rows first to first + N - 1. A row's do not depend on the others'.

    Nor do they on what the same seed gives to sampled tokens: the key is made from the seed and a word.
    """
    key = hashlib.blake2b(f"{seed} alternatives".encode(), digest_size=16).digest()
    counts = -(-draws // _AT_ONCE)
    philox = np.random.Philox(key=int.from_bytes(key, "little"), counter=first * counts)
    return np.random.Generator(philox).random((rows, counts * _AT_ONCE))[:, :draws]


def empty_rows(wish: ScoreWish, rows: int) -> tuple[Ints, Floats]:
    """Token ids and logprobs [R, W] of rows that nobody has filled yet."""
    shape = (rows, width(wish))
    return np.full(shape, EMPTY, np.int64), np.full(shape, np.nan, np.float32)


def scores_of(wish: ScoreWish, tokens_RW: Ints, logprobs_RW: Floats, *, cached: int) -> Scores:
    """Take rows apart again."""
    rows = len(tokens_RW)
    skipped = 0 if wish.last is None else rows - wish.last
    ends = np.cumsum([1, wish.topk, wish.targets.shape[1]])
    own, topk, targets, alternatives = np.split(np.arange(width(wish)), ends)
    return Scores(
        logprobs=_by_position(logprobs_RW[:, own], skipped, np.nan)[:, 0],
        topk_tokens=_by_position(tokens_RW[:, topk], skipped, EMPTY),
        topk_logprobs=_by_position(logprobs_RW[:, topk], skipped, np.nan),
        target_logprobs=np.where(wish.targets >= 0, logprobs_RW[:, targets], np.float32(np.nan))
        if targets.size
        else np.zeros((0, 0), np.float32),
        alternative_tokens=tokens_RW[:, alternatives],
        alternative_logprobs=logprobs_RW[:, alternatives],
        cached=cached,
    )


def _by_position(rows_RK: NDArray[Item], skipped: int, nothing: float) -> NDArray[Item]:
    """[P, K] with nothing at the first position and in the rows that were skipped."""
    table_PK = np.full((len(rows_RK) + 1, rows_RK.shape[1]), nothing, rows_RK.dtype)
    table_PK[skipped + 1 :] = rows_RK[skipped:]
    return table_PK
