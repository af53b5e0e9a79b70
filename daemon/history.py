"""What the journal tells an adapter's owner about it. Pure."""

from dataclasses import replace

from ..bus.codec import decode
from ..bus.config import LimitsConfig
from ..bus.errors import AdapterNotFound, InvalidRequest
from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    CheckpointSaved,
    Envelope,
    Failed,
    GetHistory,
    History,
    HistoryEntry,
    Message,
    OperationState,
    PassResult,
    ReadOperation,
    Receipt,
    StateLoaded,
    StepResult,
)
from .compositions import as_it_ran
from .decisions import ClientId, Decision, Frames, Reply
from .journal.records import Logged, Past

# Their outcomes are decoded in the broker's loop.
_PAGE = 128
_PAGE_BYTES = 16 * 2**20


class Histories:
    """past: None where no journal is kept."""

    def __init__(self, past: Past | None, limits: LimitsConfig) -> None:
        self._past = past
        self._limits = limits

    def page(self, tenant: TenantId, asked: GetHistory) -> History:
        """Raises AdapterNotFound."""
        past = self._owned(tenant, asked.adapter)
        entries: list[HistoryEntry] = []
        left_bytes = _PAGE_BYTES
        for logged in past.history(asked.adapter, asked.after, _PAGE):
            outcome = past.outcome(logged.number) if logged.order is not None else ()
            left_bytes -= sum(map(len, outcome))
            entries.append(_entry(logged, self._body(outcome) if outcome else None))
            if left_bytes <= 0:
                break
        return History(entries=tuple(entries), from_creation=past.begins(asked.adapter))

    def operation(self, client: ClientId, asked: Envelope, body: ReadOperation) -> list[Decision]:
        """Raises AdapterNotFound; InvalidRequest: it has no such operation, or not any more."""
        past = self._owned(asked.tenant, body.adapter)
        logged = past.numbered(body.number)
        known = logged is not None and logged.adapter == body.adapter
        if not known and not past.begins(body.adapter):
            raise InvalidRequest(
                f"the journal no longer has operation {body.number} of this adapter: journal.keep_s and "
                "journal.keep_bytes say how long it keeps what recovery does not need"
            )
        if logged is None or not known or logged.order is None:
            raise InvalidRequest(f"the journal has no ended operation {body.number} of this adapter")
        if not logged.whole:
            raise InvalidRequest(
                f"of operation {body.number} the journal keeps the outcome only (journal.keep_bytes)"
            )
        outcome = past.outcome(logged.number)
        parts = (as_it_ran(past.request(logged.number), outcome, self._limits), outcome)
        return [
            Reply(client, replace(asked, body=self._body(frames), last=last))
            for frames, last in zip(parts, (False, True), strict=True)
        ]

    def _owned(self, tenant: TenantId, adapter: AdapterId) -> Past:
        if self._past is None:
            raise AdapterNotFound("this daemon keeps no journal (journal.enabled), so there is no history")
        if self._past.owner(adapter) != tenant:
            raise AdapterNotFound(f"the journal has nothing of an adapter {adapter!r} of yours")
        return self._past

    def _body(self, frames: Frames) -> Message:
        return decode(frames, self._limits).body


def _entry(logged: Logged, outcome: Message | None) -> HistoryEntry:
    step, details = _described(outcome)
    state: OperationState = "waiting"
    if outcome is not None:
        state = "failed" if logged.failed else "done"
    return HistoryEntry(
        number=logged.number,
        order=logged.order or 0,
        operation=logged.kind,
        lane=logged.lane,
        seq=logged.seq,
        state=state,
        came_unix_s=logged.came_unix_s,
        size_bytes=logged.size_bytes,
        step=step,
        details=details,
    )


def _described(outcome: Message | None) -> tuple[int, str]:
    """The step that an outcome tells, and the rest of it in words."""
    match outcome:
        case None:
            return -1, ""
        case Failed(message=message):
            return -1, message
        case PassResult(metrics=metrics):
            return -1, f"loss {metrics.get('loss:sum', 0.0):.6g}"
        case StepResult(step=step, applied=applied, grad_norm=norm):
            return step, f"gradient norm {norm:.6g}" if applied else "no gradients"
        case CheckpointSaved(step=step, name=name):
            return step, f"checkpoint {name}"
        case StateLoaded(step=step):
            return step, "another state"
        case Receipt(record=record):
            return record.step, f"version {record.number}"
        case _:
            return -1, ""
