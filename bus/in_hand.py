"""The note that a trainer keeps of what it is at, for whoever comes after it.

Where it lies is `bus.layout`'s; the trainer writes it, and it is read once that died. Two notes lie in it, each
in a slot of its own and written in turn, so that the one before is there when a kill tears the one that is
being written. A slot holds the note's number, its length, a checksum of all of it, and JSON.
"""

import struct
import zlib
from dataclasses import dataclass, replace

import msgspec

from .ids import RequestId, TenantId

Key = tuple[TenantId, RequestId]

# What a note takes at most: thousands of requests. What is beyond is not noted.
SLOT_BYTES = 128 * 1024
SLOTS = 2
# Number, length and checksum.
_HEAD = struct.Struct("<QII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """in_hand: requests that it works on just now. suspects: those that trainers before it had in hand when
    they died, as far as they have not ended since."""

    in_hand: tuple[Key, ...] = ()
    suspects: tuple[Key, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode


def encode_note(number: int, note: Note) -> bytes:
    """What goes into the slot `number % SLOTS`; numbers begin at 1 and grow."""
    while len(text := _encode(note)) > SLOT_BYTES - _HEAD.size:
        note = replace(
            note,
            in_hand=note.in_hand[: len(note.in_hand) // 2],
            suspects=note.suspects[: len(note.suspects) // 2],
        )
    return _HEAD.pack(number, len(text), _checksum(number, text)) + text


def decode_note(data: bytes) -> tuple[int, Note]:
    """The newest note and its number; 0 and an empty one where none was written.

    Raises:
        ValueError: something lies there, and no whole note.
    """
    found = [_decoded(data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]) for slot in range(SLOTS)]
    whole = [each for each in found if each is not None]
    if not whole and any(data):
        raise ValueError("no whole note")
    return max(whole, key=lambda each: each[0], default=(0, Note()))


def _decoded(slot: bytes) -> tuple[int, Note] | None:
    if len(slot) < _HEAD.size:
        return None
    number, length, checksum = _HEAD.unpack_from(slot)
    text = slot[_HEAD.size : _HEAD.size + length]
    if not number or len(text) < length or checksum != _checksum(number, text):
        return None
    try:
        return number, _decode(text)
    except msgspec.MsgspecError:
        return None


def _checksum(number: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(number.to_bytes(8, "little")))
