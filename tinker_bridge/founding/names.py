"""Names of the adapters that this API makes. They are known for its own without any record: a bridge that
dies before it has one leaves an adapter whose name tells."""

import hashlib
import hmac
import secrets

from ...bus.ids import TenantId, checked_name

# With a hyphen before them and the longest beginning they make a name of 127 characters.
_RANDOM_BYTES = 8
_MARK_LENGTH = 10


def new_name(secret: bytes, tenant: TenantId, beginning: str) -> str:
    """A name that nobody has yet. Raises InvalidName."""
    unmarked = checked_name(f"{beginning}-{secrets.token_hex(_RANDOM_BYTES)}", what="an adapter")
    return unmarked + _mark(secret, tenant, unmarked)


def is_ours(secret: bytes, tenant: TenantId, name: str) -> bool:
    """Whether `new_name` made it; a name that a person thinks of never looks like that."""
    unmarked, mark = name[:-_MARK_LENGTH], name[-_MARK_LENGTH:]
    return hmac.compare_digest(mark.encode(), _mark(secret, tenant, unmarked).encode())


def _mark(secret: bytes, tenant: TenantId, unmarked: str) -> str:
    named = f"founding {tenant} {unmarked}".encode()
    return hmac.new(secret, named, hashlib.sha256).hexdigest()[:_MARK_LENGTH]
