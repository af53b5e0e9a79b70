"""Where errors become replies: the one place that catches whatever a piece of work raises.

A deliberate error is its asker's answer and nothing more. Anything else is a bug: it is logged
with its traceback, the asker reads `internal`, and `broken` says that this process must end, for
nobody knows what the bug left behind in the adapters it was working on (`suspects`).
"""

from collections.abc import Callable, Iterable

import structlog

from ..bus.errors import Internal, LoractlError
from ..bus.failures import failed
from ..bus.identities import unsolicited
from ..bus.ids import AdapterId
from ..bus.messages import Drain, Envelope, Message

log = structlog.get_logger()

# In whose name the trainer does what nobody asked for.
OURS = unsolicited(Drain())


class Boundary:
    def __init__(self) -> None:
        self.broken = False
        self.suspects: set[AdapterId] = set()

    def outcome(
        self, asker: Envelope, touched: Iterable[AdapterId], work: Callable[[], Message | None]
    ) -> Message | None:
        """What the asker is told: what `work` returns, or the failure that it raised.

        touched: the adapters that a bug in `work` would put in doubt.
        """
        try:
            return work()
        except LoractlError as error:
            return failed(error)
        except Exception:  # the loop's boundary: the client must hear of every bug
            kind = asker.body.kind
            log.exception("work.crashed", kind=kind, tenant=asker.tenant, request_id=asker.request)
            self.broken = True
            self.suspects.update(touched)
            return failed(Internal(f"{kind} failed inside the trainer, which restarts; its log says why"))
