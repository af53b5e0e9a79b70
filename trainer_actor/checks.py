"""Whether an adapter and a client's data can be used, before anything runs. Pure: numpy only."""

import math
from collections.abc import Sequence

import numpy as np

from ..bus.errors import InvalidData, InvalidRequest
from ..bus.messages import Floats, Ints, LoraSpec
from .passes import PassPart


def check_lora(lora: LoraSpec, *, max_rank: int) -> None:
    """Raises InvalidRequest: a rank, alpha, seed or choice of targets that cannot be."""
    if not 1 <= lora.rank <= max_rank:
        raise InvalidRequest(f"rank {lora.rank} is not between 1 and {max_rank} (trainer.max_rank)")
    if not (math.isfinite(lora.alpha) and lora.alpha > 0):
        raise InvalidRequest(f"alpha is {lora.alpha}; it must be a positive number")
    if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
        raise InvalidRequest("nothing to train: set at least one of train_attn, train_mlp, train_unembed")


def check_part(part: PassPart, *, vocab: int, max_sequence: int) -> None:
    """Raises InvalidData: arrays that do not fit together or hold what no model takes."""
    _check_lengths(part, max_sequence)
    check_tokens(part.tokens, vocab, what="tokens")
    check_tokens(part.targets, vocab, what="targets")
    _check_finite(part.weights, what="weights")
    if part.loss != "cross_entropy":
        _check_finite(part.old_logprobs, what="old_logprobs")
        _check_finite(part.advantages, what="advantages")


def check_tokens(tokens: Ints | Sequence[int], vocab: int, *, what: str) -> None:
    """Raises InvalidData: an id outside of the vocabulary."""
    ids = np.asarray(tokens, dtype=np.int64)
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab))
    if len(wrong):
        raise InvalidData(f"{what}[{wrong[0]}] is {ids[wrong[0]]}; the vocabulary has ids 0 to {vocab - 1}")


def _check_lengths(part: PassPart, max_sequence: int) -> None:
    if len(part.lengths) == 0:
        raise InvalidData("there are no datums")
    for index, length in enumerate(part.lengths.tolist()):
        if not 1 <= length <= max_sequence:
            raise InvalidData(f"datum {index} has {length} positions; 1 to {max_sequence} are possible")
    total = int(part.lengths.sum())
    policy = part.loss != "cross_entropy"
    arrays: dict[str, tuple[Ints | Floats, int]] = {
        "tokens": (part.tokens, total),
        "targets": (part.targets, total),
        "weights": (part.weights, total),
        "old_logprobs": (part.old_logprobs, total if policy else 0),
        "advantages": (part.advantages, total if policy else 0),
    }
    for name, (array, wanted) in arrays.items():
        if array.shape != (wanted,):
            raise InvalidData(f"{name} has {array.size} values; {part.loss} needs {wanted} for these lengths")


def _check_finite(values: Floats, *, what: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InvalidData(f"{what}[{wrong[0]}] is {values[wrong[0]]}; every value must be finite")
