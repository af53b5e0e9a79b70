"""What attempts over HTTP are made of: what somebody has, and the requests that aim at it."""

import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

API = "/api/v1"
Fields = dict[str, Any]


@dataclass(frozen=True)
class Belongings:
    """What a tenant has over HTTP, or ids of what nobody has. signed: of an export's address."""

    session: str
    run: str
    future: str
    sampler: str
    founding: str
    saved: str
    project: str
    signed: str
    next_seq: int = 1

    @property
    def state(self) -> str:
        return f"tinker://{self.run}/weights/{self.saved}"

    @property
    def weights(self) -> str:
        return f"tinker://{self.run}/sampler_weights/{self.saved}"

    @property
    def external(self) -> str:
        return f"tinker://{self.run}/external_weights/{self.saved}"

    def words(self) -> tuple[str, ...]:
        return (self.session, self.future, self.founding, self.saved, self.project, self.signed)


def nobodys() -> Belongings:
    session = str(uuid.uuid4())
    return Belongings(
        session=session,
        run=f"{session}:train:0",
        future=secrets.token_hex(24) + "0",
        sampler=f"{session}:sample:0",
        founding=f"{secrets.token_hex(4)}-{secrets.token_hex(8)}",
        saved=f"saved-{secrets.token_hex(4)}",
        project=f"project-{secrets.token_hex(4)}",
        signed=secrets.token_urlsafe(48),
    )


class Ask(NamedTuple):
    """A request: its path behind the host, its JSON body or None, its query. works: answered by a future."""

    path: str
    body: Fields | None = None
    query: Fields = {}  # noqa: RUF012  (read only)
    works: bool = False


Try = Callable[[Belongings, Belongings], Ask]
# Attempts by the route, its method first.
Attempts = Mapping[tuple[str, str], tuple[Try, ...]]


def post(path: str, made: Callable[[Belongings, Belongings], Fields], *, works: bool = False) -> Try:
    return lambda it, mine: Ask(path, made(it, mine), works=works)


def get(made: Callable[[Belongings], str]) -> Try:
    return lambda it, _mine: Ask(made(it))
