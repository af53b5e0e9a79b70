"""What tells a resend from another operation under the same number: a digest of the content.

Pure. The digest is kept in place of the operation itself, whose arrays may be megabytes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from ..bus.messages import LATE, Message


def fingerprint(message: Message) -> bytes:
    """BLAKE2b over the kind and every field that says what to do. Equal for equal content, whatever order
    mappings have."""
    digest = hashlib.blake2b(message.kind.encode(), digest_size=16)
    for field in fields(message):  # type: ignore[arg-type]  # every Message is a dataclass
        if field.metadata == LATE:  # in which passes it ran before: a client that asks again does not know
            continue
        digest.update(f"\n{field.name}=".encode())
        value = getattr(message, field.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        elif isinstance(value, Mapping):
            digest.update(repr(sorted(value.items())).encode())
        else:
            digest.update(repr(value).encode())
    return digest.digest()
