"""Ids that follow from what they are for: the same work gets the same ids whenever it runs.

Nobody else can make them: they need the store's secret. A future's id also proves to whom it was given,
after a restart and after the future itself was forgotten.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Self

import msgspec

from ..bus.ids import RequestId, TenantId

# Names what a future is for, from ids in the request's body: the same key is the same work.
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the names come from that a piece of work uses. path: what the work is for."""

    secret: bytes
    path: tuple[str, ...] = ()

    @classmethod
    def fresh(cls) -> Self:
        """Of work that nobody will run again."""
        return cls(secrets.token_bytes(32))

    def inside(self, *path: str) -> "Origin":
        return Origin(self.secret, (*self.path, *path))

    def token(self, what: str) -> str:
        """128 bits in hex."""
        return self._digest(what)[:16].hex()

    def request(self, step: str) -> RequestId:
        """The id on the bus of one step of the work."""
        return RequestId(self.token(f"request {step}"))

    def number(self, what: str, below: int) -> int:
        return int.from_bytes(self._digest(what)) % below

    def _digest(self, what: str) -> bytes:
        return hmac.digest(self.secret, msgspec.json.encode([*self.path, what]), "sha256")


class FutureIds:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, tenant: TenantId, key: Key) -> str:
        nonce = Origin(self._secret, ("future", tenant, *key)).token("id")
        return f"{nonce}.{self._mark(tenant, nonce)}"

    def given_to(self, tenant: TenantId, future_id: str) -> bool:
        nonce, _, mark = future_id.partition(".")
        return hmac.compare_digest(mark.encode(), self._mark(tenant, nonce).encode())

    def _mark(self, tenant: TenantId, nonce: str) -> str:
        return hmac.new(self._secret, f"{tenant}/{nonce}".encode(), hashlib.sha256).hexdigest()[:16]
