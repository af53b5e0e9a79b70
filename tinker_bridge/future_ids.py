"""Ids that prove to whom they were given, also after a restart forgot what for."""

import hashlib
import hmac
import secrets

from ..bus.ids import TenantId


class FutureIds:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new(self, tenant: TenantId) -> str:
        nonce = secrets.token_hex(16)
        return f"{nonce}.{self._mark(tenant, nonce)}"

    def given_to(self, tenant: TenantId, future_id: str) -> bool:
        nonce, _, mark = future_id.partition(".")
        return hmac.compare_digest(mark.encode(), self._mark(tenant, nonce).encode())

    def _mark(self, tenant: TenantId, nonce: str) -> str:
        return hmac.new(self._secret, f"{tenant}/{nonce}".encode(), hashlib.sha256).hexdigest()[:16]
