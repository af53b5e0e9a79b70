"""From the datums of a request to the packed arrays that the trainer takes: which inputs a loss has, and
in which shapes.

Legend: B = datums, N = positions of a datum, T = positions of all datums end to end, K = targets of a
position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ...bus.errors import InvalidData, InvalidRequest, NotSupported
from ...bus.messages import Floats, Ints, LossName
from .pass_request import Datum, shown
from .tensors import MOST_CELLS, shape_text

_PER_TOKEN_SETTINGS = ("clip_low_threshold", "clip_high_threshold")
_NO_FLOATS = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """As in the message ForwardBackward. lengths [B]; targets and weights [T] or [T, K]; the others [T]
    or empty. ignored: names of inputs that the loss does not have.
    """

    lengths: Ints
    tokens: Ints
    targets: Ints
    weights: Floats
    old_logprobs: Floats
    advantages: Floats
    ratio_mask: Floats
    ignored: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        arrays = (self.lengths, self.tokens, self.targets, self.weights, self.old_logprobs)
        return sum(each.nbytes for each in (*arrays, self.advantages, self.ratio_mask))


def packed(data: Sequence[Datum], loss: LossName) -> LossInputs:
    """
    Raises:
        InvalidData: an input is missing, or its shape or values cannot be used.
        NotSupported: an input that is known and not honoured.
    """
    lengths = _lengths(data)
    _check_names(data)
    columns = _Columns(data, _targets_of_a_position(data, lengths))
    supervised = loss == "cross_entropy"
    if not supervised:
        columns.check_one_target(loss)
    old_logprobs = _NO_FLOATS if supervised else columns.floats("logprobs", needed_by=loss)
    return LossInputs(
        lengths=lengths,
        tokens=np.concatenate([datum.tokens for datum in data]).astype(np.int64, copy=False),
        targets=columns.targets(),
        weights=columns.floats("weights", missing=1.0, wide=True) if supervised else columns.counted(loss),
        old_logprobs=old_logprobs,
        advantages=_NO_FLOATS if supervised else columns.floats("advantages", needed_by=loss),
        ratio_mask=columns.ratio_mask() if loss == "gspo" else _NO_FLOATS,
        ignored=_ignored(data, loss),
    )


def _lengths(data: Sequence[Datum]) -> Ints:
    if not data:
        raise InvalidData("there is no data: send at least one datum")
    lengths = np.array([datum.tokens.size for datum in data], dtype=np.int64)
    if not lengths.all():
        raise InvalidData(f"datum {int(lengths.argmin())} has no tokens")
    return lengths


def _ignored(data: Sequence[Datum], loss: LossName) -> tuple[str, ...]:
    taken = {"target_tokens", "weights"}
    if loss != "cross_entropy":
        taken |= {"mask", "logprobs", "advantages"}
    if loss == "gspo":
        taken |= {"sequence_ratio_mask"}
    return tuple(sorted({name[:64] for datum in data for name in datum.inputs} - taken))


def _check_names(data: Sequence[Datum]) -> None:
    for index, datum in enumerate(data):
        if "target_tokens" not in datum.inputs:
            raise InvalidData(f"datum {index} has no target_tokens: every position needs one to predict")
        for name in _PER_TOKEN_SETTINGS:
            if name in datum.inputs:
                raise NotSupported(
                    f"datum {index} has {name} for each token, which is not supported: give one for "
                    "all of them in loss_fn_config"
                )


def _targets_of_a_position(data: Sequence[Datum], lengths: Ints) -> tuple[int, ...]:
    """() or (K,), the same for all datums. Nothing is made whole before this is known to be small."""
    shapes = [datum.inputs["target_tokens"].shape for datum in data]
    each = shapes[0][1:]
    for index, (datum, shape, length) in enumerate(zip(data, shapes, lengths.tolist(), strict=True)):
        if not datum.inputs["target_tokens"].holds_ints:
            raise InvalidData(f"datum {index}: target_tokens must be int64")
        if not 1 <= len(shape) <= 2 or shape[0] != length or 0 in shape:
            raise InvalidData(
                f"datum {index}: target_tokens has the shape {shape_text(shape)}, and model_input has {length} tokens: "
                f"send ({length},), or ({length}, K) for K targets a position"
            )
        if shape[1:] != each:
            raise InvalidData(
                f"target_tokens has the shape {shape_text(shapes[0])} in datum 0 and {shape_text(shape)} in datum {index}: all "
                "datums of a call have the same number of targets a position; make two calls"
            )
    if int(lengths.sum()) * math.prod(each) > MOST_CELLS:
        raise InvalidData(f"target_tokens has more than {MOST_CELLS} cells: send fewer datums at a time")
    return each


@dataclass(frozen=True, slots=True)
class _Columns:
    """The inputs by name, each over all datums. each: () or (K,)."""

    data: Sequence[Datum]
    each: tuple[int, ...]

    def check_one_target(self, loss: LossName) -> None:
        if self.each:
            raise InvalidData(
                f"{loss} takes one target a position, target_tokens of the shape (N,); (N, K) is for "
                "cross_entropy"
            )

    def targets(self) -> Ints:
        return np.concatenate([datum.inputs["target_tokens"].whole() for datum in self.data]).astype(
            np.int64, copy=False
        )

    def mask(self, loss: LossName) -> Floats:
        """Which positions count, 0 or 1, by `mask` and by `weights`; all, where nothing is said."""
        values = [self.floats(name, missing=1.0) for name in ("mask", "weights")]
        if not all(((each == 0) | (each == 1)).all() for each in values):
            raise InvalidData(
                f"mask or weights of {loss} hold values other than 0 and 1: put factors into the advantages"
            )
        return values[0] * values[1]

    def counted(self, loss: LossName) -> Floats:
        """The mask, without the padding of prompts: positions that were not sampled, by their provenance, and
        have no advantage. Their log p of sampling is made up, so a penalty on it would teach it."""
        advantages = self.floats("advantages", needed_by=loss)
        sampled = [
            np.ones(datum.tokens.size, dtype=np.bool_) if datum.sampled is None else datum.sampled
            for datum in self.data
        ]
        return np.where(np.concatenate(sampled) | (advantages != 0), self.mask(loss), np.float32(0))

    def ratio_mask(self) -> Floats:
        """Empty when no datum has one, which is the same as ones."""
        name = "sequence_ratio_mask"
        if not any(name in datum.inputs for datum in self.data):
            return _NO_FLOATS
        return self.floats(name, missing=1.0)

    def floats(
        self, name: str, *, missing: float = 0.0, needed_by: LossName | None = None, wide: bool = False
    ) -> Floats:
        """missing: the value where a datum lacks this input. wide: in the shape of the targets."""
        parts: list[Ints | Floats] = []
        for index, datum in enumerate(self.data):
            shape = (datum.tokens.size, *(self.each if wide else ()))
            found = datum.inputs.get(name)
            if found is None:
                if needed_by is not None:
                    raise InvalidData(f"datum {index} has no {name}, which {needed_by} needs")
                parts.append(np.full(shape, missing, dtype=np.float32))
                continue
            if found.shape != shape:
                raise InvalidData(
                    f"datum {index}: {name} has the shape {shape_text(found.shape)}, and needs {shape_text(shape)}"
                )
            parts.append(found.whole())
        return np.concatenate(parts).astype(np.float32, copy=False)


def checked_loss(loss_fn: str) -> LossName:
    """
    Raises:
        NotSupported: a loss of the client's own.
        InvalidRequest: no such loss.
    """
    if loss_fn == "custom":
        raise NotSupported(
            "the loss 'custom' runs on the server, which this one does not do: use forward_backward_custom, "
            "whose loss runs at the client"
        )
    for known in _LOSSES:
        if loss_fn == known:
            return known
    raise InvalidRequest(f"there is no loss {shown(loss_fn)}: the losses are {', '.join(_LOSSES)}")


_LOSSES: tuple[LossName, ...] = get_args(LossName)
