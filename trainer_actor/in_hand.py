"""The note of the requests that the trainer has in hand: who reads it when it died knows what it was at.

Owns `<state>/run/in_hand`. It outlives the process and not the machine, whose end nobody blames on a
request; so it costs one small write into an open file, and no wait for a disk. A kill may cut that short: what
is noted goes where the note before the last one was (`bus.in_hand`).
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from ..bus.in_hand import SLOT_BYTES, SLOTS, Key, Note, decode_note, encode_note
from ..bus.messages import Envelope

log = structlog.get_logger()

# Suspects that never come again, such as those of a deleted adapter, do not pile up.
_SUSPECTS = 256


class InHand:
    """suspects: what the trainers before this one had in hand when they died, until it ends. number: of the
    last note that is there."""

    def __init__(self, descriptor: int, suspects: Iterable[Key], number: int) -> None:
        self.suspects = dict.fromkeys([*dict.fromkeys(suspects)][-_SUSPECTS:])
        self._descriptor = descriptor
        self._turn: tuple[Key, ...] = ()
        self._job: tuple[Key, ...] = ()
        self._number = number
        self._write()

    @classmethod
    def open(cls, file: Path) -> Self:
        """Read what is noted there, then begin anew. Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        number, before = _read(descriptor)
        with suppress(
            OSError
        ):  # room from the start, so that a full disk does not keep it from being written
            os.posix_fallocate(descriptor, 0, SLOTS * SLOT_BYTES)
        return cls(descriptor, (*before.suspects, *before.in_hand), number)

    def take(self, askers: Iterable[Envelope]) -> None:
        """These are what the loop works on now; without any, nothing."""
        self._turn = _keys(askers)
        self._write()

    def leave_to_disk(self, askers: Iterable[Envelope]) -> None:
        """These are what the disk's thread works on now; without any, nothing."""
        self._job = _keys(askers)
        self._write()

    def ended(self, askers: Iterable[Envelope]) -> None:
        """These were answered: whatever killed a trainer, it was not they."""
        for key in _keys(askers) if self.suspects else ():
            self.suspects.pop(key, None)

    def close(self) -> None:
        """Nothing is in hand any more."""
        self._turn = self._job = ()
        self._write()
        os.close(self._descriptor)

    def _write(self) -> None:
        note = Note(in_hand=(*self._job, *self._turn), suspects=tuple(self.suspects))
        number = self._number + 1
        left, at = memoryview(encode_note(number, note)), (number % SLOTS) * SLOT_BYTES
        try:
            while left:
                written = os.pwrite(self._descriptor, left, at)
                left, at = left[written:], at + written
        except OSError as error:  # the work goes on; who died with it is blamed less well
            log.warning("in_hand.not_noted", reason=str(error))
        else:
            self._number = number  # else the next one goes to the same place: the other note is whole


def _keys(askers: Iterable[Envelope]) -> tuple[Key, ...]:
    return tuple((asker.tenant, asker.request) for asker in askers)


def _read(descriptor: int) -> tuple[int, Note]:
    """The note that is there, and its number."""
    try:
        return decode_note(os.pread(descriptor, SLOTS * SLOT_BYTES, 0))
    except ValueError as error:
        log.warning("in_hand.not_read", reason=str(error))
        return 0, Note()
