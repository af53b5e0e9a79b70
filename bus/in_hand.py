"""The note that a trainer keeps of what it is at, for whoever comes after it: what it says, as JSON.

It may end in blanks. Where it lies is `bus.layout`'s; the trainer writes it, and it is read once that died.
"""

from dataclasses import dataclass

import msgspec

from .ids import RequestId, TenantId

Key = tuple[TenantId, RequestId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """in_hand: requests that it works on just now. suspects: those that trainers before it had in hand when
    they died, as far as they have not ended since."""

    in_hand: tuple[Key, ...] = ()
    suspects: tuple[Key, ...] = ()


encode_note = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode


def decode_note(data: bytes) -> Note:
    """Raises ValueError: this is no note."""
    try:
        return _decode(data) if data.strip() else Note()
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
