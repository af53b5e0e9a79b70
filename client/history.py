"""An adapter's history: read from the daemon's journal, run again, and compared bit for bit.

What changed the adapter's state is run again on another adapter, in the order in which it ended; each
answer must be the journal's own, for then the weights before it were.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np

from ..bus.client import Client, Pending
from ..bus.errors import InvalidRequest
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import (
    LATE,
    CheckpointSaved,
    Done,
    ForwardBackward,
    GetHistory,
    History,
    HistoryEntry,
    ImportWeights,
    LaneOpened,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OpenLane,
    OptimStep,
    ReadOperation,
    SaveCheckpoint,
    UnloadAdapter,
)
from .futures import checked

LOADS = frozenset(request.kind for request in (LoadCheckpoint, LoadVersion, ImportWeights))
_CHANGES = LOADS | {ForwardBackward.kind, OptimStep.kind}
# What an unload undoes, where no step came behind it.
_IN_A_WINDOW = frozenset({ForwardBackward.kind, SaveCheckpoint.kind})
_UNLOADED_AFTER = frozenset({LoadCheckpoint.kind, SaveCheckpoint.kind})
# Operations under way at one time while a history runs again.
_AHEAD = 16

KEPT_SO_LONG = "it keeps what recovery does not need for journal.keep_s and up to journal.keep_bytes"

Operation = ForwardBackward | OptimStep | LoadCheckpoint | LoadVersion | ImportWeights | SaveCheckpoint
_UnderWay = tuple[HistoryEntry, Message, Pending]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer was not the journal's: the first field that differs, and by how much at most, where it is a
    fraction or as many of them as there were."""

    entry: HistoryEntry
    field: str
    by: float | None = None


@dataclass(slots=True)
class Rerun:
    """Where a history runs again: on an adapter of somebody, fresh, on a lane of it. seq: of the next operation."""

    client: Client
    tenant: TenantId
    adapter: AdapterId
    lane: LaneId
    seq: int = 1

    def submit(self, operation: Operation) -> Pending:
        sent = replace(operation, adapter=self.adapter, lane=self.lane, seq=self.seq)
        if isinstance(sent, SaveCheckpoint):  # there may be one of that name, which was deleted since
            sent = replace(sent, overwrite=True)
        self.seq += 1
        return self.client.submit(sent, tenant=self.tenant)

    def unload(self) -> None:
        """Its lane ends with that: it goes on with another. Nothing of it may be under way."""
        for body, answer in (
            (UnloadAdapter(adapter=self.adapter), Done),
            (OpenLane(adapter=self.adapter), LaneOpened),
        ):
            told = checked(self.client.submit(body, tenant=self.tenant).result(), answer)
        assert isinstance(told, LaneOpened)
        self.lane, self.seq = told.lane, 1


def read_history(
    client: Client, adapter: AdapterId, tenant: TenantId, *, after: int = 0
) -> tuple[list[HistoryEntry], bool]:
    """All that the journal holds behind an order, ended operations in the order of their ends; and whether
    the journal has all there ever was.

    Raises AdapterNotFound.
    """
    entries: list[HistoryEntry] = []
    while True:
        after = max((entry.order for entry in entries), default=after)
        page = checked(
            client.submit(GetHistory(adapter=adapter, after=after), tenant=tenant).result(), History
        )
        ended = [entry for entry in page.entries if entry.order]
        if not ended:
            return [*entries, *page.entries], page.from_creation
        entries += ended


def changes(
    entries: Sequence[HistoryEntry], *, at_step: int | None, whole: bool = True, with_saves: bool = False
) -> list[HistoryEntry]:
    """Those that made the state what it was when the adapter last stood at a step (None: now), from the
    last that replaced all of it on. whole: they are all there ever were. with_saves: and the saves between them,
    which tell digests of it.

    Raises:
        InvalidRequest: the adapter never was at that step, as far as the journal goes back.
    """
    made = _counted(done_of(entries), _CHANGES | {SaveCheckpoint.kind} if with_saves else _CHANGES)
    if at_step is not None:
        assert not with_saves, "one that was saved in the middle of a window is at that step, too"
        ends = [index for index, each in enumerate(made) if each.step == at_step]
        if at_step == 0 and not ends:
            return []
        if not ends:
            there = sorted({each.step for each in made if each.step >= 0})
            if not whole and at_step < max(there, default=at_step + 1):
                raise InvalidRequest(
                    f"the journal no longer has step {at_step} of this adapter: {KEPT_SO_LONG}"
                )
            known = f"{there[0]} to {there[-1]}" if there else "none yet"
            raise InvalidRequest(f"the journal has no step {at_step} of this adapter; it has {known}")
        end = ends[-1] + 1
        made = made[: end + 1] if _unloads(made[end : end + 1]) else made[:end]
    loads = [index for index, each in enumerate(made) if each.operation in LOADS]
    return made[loads[-1] :] if loads else made


def without_load(
    entries: Sequence[HistoryEntry], load: HistoryEntry, save: HistoryEntry
) -> list[HistoryEntry]:
    """A history in which an adapter never went back to what it had saved itself: without the load, and without all
    that it undid. What is left makes the same state, for a checkpoint is all of it. entries: each once, as `done_of`
    has them."""
    # An adapter does nothing else while it is saved: what ended before came before.
    return [each for each in entries if not save.order <= each.order <= load.order]


def done_of(entries: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """What succeeded, each once: an operation of a lane that came under two request ids ran at the first."""
    first: dict[tuple[LaneId, int], HistoryEntry] = {}
    for each in entries:
        if each.state == "done":
            first.setdefault((each.lane, each.seq if each.lane else each.number), each)
    return list(first.values())


def _counted(done: Sequence[HistoryEntry], kinds: Collection[str]) -> list[HistoryEntry]:
    """Of these kinds, without the passes of windows that an unload closed before their step: their gradients went
    with it. Those up to a save stay, for it holds them, and what a checkpoint had brought does: where it follows
    either, the unload stays as well."""
    made: list[HistoryEntry] = []
    stepped = 0
    for each in done:
        if each.operation == UnloadAdapter.kind:
            while len(made) > stepped and made[-1].operation != SaveCheckpoint.kind:
                made.pop()
            if made and made[-1].operation in _UNLOADED_AFTER:
                made.append(each)
            stepped = len(made)
        elif each.operation in kinds:
            made.append(each)
            if each.operation not in _IN_A_WINDOW:
                stepped = len(made)
    return made


def _unloads(entries: Sequence[HistoryEntry]) -> bool:
    return any(each.operation == UnloadAdapter.kind for each in entries)


def read_operation(
    client: Client, adapter: AdapterId, entry: HistoryEntry, tenant: TenantId
) -> tuple[Operation, Message]:
    """An operation as it came, and its outcome. Raises InvalidRequest: the journal let go of it."""
    operation, outcome = _read(client, adapter, entry, tenant)
    assert isinstance(operation, Operation)
    return operation, outcome


def read_save(
    client: Client, adapter: AdapterId, entry: HistoryEntry, tenant: TenantId
) -> tuple[SaveCheckpoint, CheckpointSaved]:
    """Raises as `read_operation`."""
    operation, outcome = _read(client, adapter, entry, tenant)
    assert isinstance(operation, SaveCheckpoint)
    assert isinstance(outcome, CheckpointSaved)
    return operation, outcome


def _read(
    client: Client, adapter: AdapterId, entry: HistoryEntry, tenant: TenantId
) -> tuple[Message, Message]:
    while True:
        pending = client.submit(ReadOperation(adapter=adapter, number=entry.number), tenant=tenant)
        *operations, outcome = pending.whole()
        if operations:  # not lost on its way
            return operations[-1], outcome


def run_again(
    source: Client, adapter: AdapterId, tenant: TenantId, entries: Sequence[HistoryEntry], onto: Rerun
) -> Iterator[tuple[HistoryEntry, Difference | None]]:
    """Run entries of one adapter again; yields each with what differed, as it ends. source: where the journal is.

    Raises:
        LoractlError: an operation failed that had not.
    """
    under_way: deque[_UnderWay] = deque()
    for entry in entries:
        if entry.operation == UnloadAdapter.kind:
            yield from _ended(under_way, 0)
            onto.unload()
            yield entry, None
        else:
            operation, outcome = read_operation(source, adapter, entry, tenant)
            if isinstance(outcome, CheckpointSaved):
                outcome = replace(outcome, adapter=onto.adapter)
            under_way.append((entry, outcome, onto.submit(operation)))
            yield from _ended(under_way, _AHEAD - 1)
    yield from _ended(under_way, 0)


def _ended(under_way: deque[_UnderWay], leave: int) -> Iterator[tuple[HistoryEntry, Difference | None]]:
    """The first of them, until so many are left."""
    while len(under_way) > leave:
        entry, expected, pending = under_way.popleft()
        yield entry, difference(entry, expected, pending.result())


def difference(entry: HistoryEntry, expected: Message, got: Message) -> Difference | None:
    """None where two answers to an operation are the same to the bit."""
    if type(expected) is not type(got):
        return Difference(entry, "kind of answer")
    assert is_dataclass(expected)
    for field in fields(expected):
        if field.metadata == LATE:  # not what was computed, but how
            continue
        first, second = getattr(expected, field.name), getattr(got, field.name)
        if isinstance(first, np.ndarray):
            same = first.tobytes() == second.tobytes()
        else:
            same = first == second
        if not same:
            return Difference(entry, field.name, _by(first, second))
    return None


def _by(first: object, second: object) -> float | None:
    """Of numbers that are not equal; nan where one of them is none."""
    if not isinstance(first, float | np.ndarray) or not isinstance(second, float | np.ndarray):
        return None
    if np.shape(first) != np.shape(second):
        return None
    differ = np.asarray(first) != np.asarray(second)
    return float(
        np.max(np.abs(np.subtract(first, second, dtype=np.float64, where=differ, out=np.zeros(differ.shape))))
    )
