"""Whether an adapter and a client's data can be used, before anything runs. Pure: numpy only."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    _check_lengths(part.lengths, max_sequence)
    _check_shapes(part)
    check_tokens(part.tokens, vocab, what="tokens")
    check_tokens(part.targets, vocab, what="targets")
    _check_finite(part.weights, what="weights")
    _check_finite(part.old_logprobs, what="old_logprobs")
    _check_finite(part.advantages, what="advantages")
    _check_finite(part.ratio_mask, what="ratio_mask")


def check_tokens(tokens: Ints | Sequence[int], vocab: int, *, what: str) -> None:
    """Raises InvalidData: an id outside of the vocabulary."""
    ids = np.asarray(tokens, dtype=np.int64)
    if (wrong := _first((ids < 0) | (ids >= vocab))) is not None:
        raise InvalidData(f"{what}{_listed(wrong)} is {ids[wrong]}; the vocabulary has ids 0 to {vocab - 1}")


def _check_finite(values: Floats, *, what: str) -> None:
    if (wrong := _first(~np.isfinite(values))) is not None:
        raise InvalidData(f"{what}{_listed(wrong)} is {values[wrong]}; every value must be finite")


def _check_lengths(lengths: Ints, max_sequence: int) -> None:
    if lengths.ndim != 1:
        raise InvalidData(f"lengths has shape {_listed(lengths.shape)}; give one number for each datum")
    if len(lengths) == 0:
        raise InvalidData("there are no datums")
    for index, length in enumerate(lengths.tolist()):
        if not 1 <= length <= max_sequence:
            raise InvalidData(f"datum {index} has {length} positions; 1 to {max_sequence} are possible")


def _check_shapes(part: PassPart) -> None:
    total = int(part.lengths.sum())
    each, nothing = (total,), (0,)
    if part.loss != "cross_entropy" and part.targets.ndim == 2:
        raise InvalidData(
            f"targets has shape {_listed(part.targets.shape)}; {part.loss} takes one target a position, "
            "only cross_entropy takes several"
        )
    targets = (total, max(1, part.targets.shape[1])) if part.targets.ndim == 2 else each
    policy = nothing if part.loss == "cross_entropy" else each
    mask = each if part.loss == "gspo" and part.ratio_mask.size else nothing
    arrays: dict[str, tuple[Ints | Floats, tuple[int, ...]]] = {
        "tokens": (part.tokens, each),
        "targets": (part.targets, targets),
        "weights": (part.weights, targets),
        "old_logprobs": (part.old_logprobs, policy),
        "advantages": (part.advantages, policy),
        "ratio_mask": (part.ratio_mask, mask),
    }
    for name, (array, wanted) in arrays.items():
        if array.shape == wanted:
            continue
        if wanted == nothing:
            raise InvalidData(f"{part.loss} does not use {name}; it must be empty")
        raise InvalidData(
            f"{name} has shape {_listed(array.shape)}; {part.loss} needs {_listed(wanted)} "
            "for these lengths and targets"
        )


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """The first place that is True."""
    if not wrong.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))


def _listed(numbers: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, numbers))}]"
