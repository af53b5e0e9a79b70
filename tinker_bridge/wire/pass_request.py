"""What a forward_backward request says, whichever form it came in, before the loss has been looked at.

Legend: N = positions of a datum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...bus.errors import InvalidData, InvalidRequest, NotSupported
from ...bus.messages import Ints
from .tensors import Tensor

_MEDIA = ("image", "image_asset_pointer", "dmel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """tokens [N]; inputs: the loss's, by name, not yet compared with the tokens.

    sampled [N]: whether a position's target was sampled, as its provenance says; None without provenance.
    """

    tokens: NDArray[np.int32] | Ints
    inputs: Mapping[str, Tensor]
    sampled: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRequest:
    """seq_id None: not numbered. settings: numbers, and texts which no loss of ours takes."""

    model_id: str
    seq_id: int | None
    loss_fn: str
    settings: Mapping[str, float | str]
    forward_only: bool
    data: Sequence[Datum]


def refuse_chunk(kind: str, where: str) -> InvalidRequest | NotSupported:
    """The error for a chunk of model input that is not text."""
    if kind in _MEDIA:
        return NotSupported(f"{where} has a chunk of type {kind!r}: this server takes text only")
    return InvalidRequest(f"{where} has a chunk of the unknown type {shown(kind)}: send encoded_text")


def check_span(sequence_id: str, offset: int, length: int, where: str) -> None:
    """Raises InvalidData: not a run of tokens of a sequence."""
    if not sequence_id or offset < 0 or length < 0:
        raise InvalidData(
            f"{where} has a span that names no tokens: it needs a sequence_id, an offset and a length"
        )


def check_tiling(covered: int, positions: int, where: str) -> None:
    """Raises InvalidData: spans that do not cover what they describe."""
    if covered != positions:
        raise InvalidData(f"{where} cover {covered} positions, and there are {positions}")


def shown(text: str) -> str:
    """A client's word for a message to it, which stays short."""
    return repr(text if len(text) <= 64 else text[:64] + "…")
