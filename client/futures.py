"""Answers that are on their way, with the type they will have."""

from typing import Generic, Protocol, TypeVar

from ..bus.client import Client, Pending
from ..bus.errors import Internal
from ..bus.messages import Message

ReplyT = TypeVar("ReplyT", bound=Message)
AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Reply(Protocol[AnswerT_co]):
    """What can be waited for; `Future` is the one over the bus."""

    def result(self) -> AnswerT_co: ...


class Future(Generic[ReplyT]):
    """A request under way. It goes on whether or not anybody waits for its result."""

    def __init__(self, pending: Pending, expected: type[ReplyT]) -> None:
        self._pending = pending
        self._expected = expected

    def result(self, timeout_s: float | None = None) -> ReplyT:
        """Wait for the answer.

        Raises:
            LoractlError: what the server answered, or DaemonGone.
            TimeoutError: no answer yet; ask again.
        """
        return checked(self._pending.result(timeout_s), self._expected)


def ask(client: Client, body: Message, expected: type[ReplyT]) -> ReplyT:
    """Send a request and wait for an answer of the expected type."""
    return checked(client.request(body), expected)


def checked(reply: Message, expected: type[ReplyT]) -> ReplyT:
    """Raises:
    Internal: the server answered with another kind of message than this request has.
    """
    if not isinstance(reply, expected):
        raise Internal(
            f"expected {expected.kind!r} from the server, got {reply.kind!r}: are both of one version?"
        )
    return reply
