"""Encrypts to age recipients (the format of age-encryption.org/v1): the bridge's door to `pyrage`."""

from collections.abc import Sequence
from typing import BinaryIO

import pyrage  # type: ignore[import-untyped]

from ..bus.errors import InvalidRequest

# As the API documents.
_MOST_RECIPIENTS = 10
_PIECE_BYTES = 2**20


class Recipients:
    """Whom files are encrypted to: native `age1…` keys and SSH public keys."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises InvalidRequest: none at all, too many, or one that is no recipient."""
        if not texts:
            raise InvalidRequest(
                "age_encryption_recipients is empty: name whom to encrypt to, or leave it out"
            )
        if len(texts) > _MOST_RECIPIENTS:
            raise InvalidRequest(f"{len(texts)} age recipients were given: at most {_MOST_RECIPIENTS} can be")
        self._parsed = [_parsed(text) for text in texts]

    def encrypt(self, data: memoryview, file: BinaryIO) -> None:
        """Write data, encrypted, to a file. For a thread: it lets other threads run in between.

        Raises:
            OSError: the file cannot be written.
        """
        try:
            pyrage.encrypt_io(_Pieces(data), file, self._parsed)
        except pyrage.EncryptError as error:
            raise OSError(str(error)) from error


class _Pieces:
    """Data read piece by piece. pyrage holds the interpreter while it encrypts: only here, between two
    pieces, can the loop go on, so `read` must stay Python code."""

    def __init__(self, data: memoryview) -> None:
        self._left = data

    def read(self, size: int = -1) -> bytes:
        most = _PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES)
        piece, self._left = self._left[:most], self._left[most:]
        return bytes(piece)


def _parsed(text: str) -> object:
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        recipient: object = kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise InvalidRequest(
            f"{text[:80]!r} is no age recipient ({error}): give age1… keys or SSH public keys"
        ) from error
    return recipient
