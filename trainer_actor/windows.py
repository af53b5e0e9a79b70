"""The step window of one adapter: which event may follow which, in one table.

A window holds the operations since the adapter's last committed step: forward_backward opens it,
optim_step commits and closes it. Pure data; the numbers themselves are the engine's.

What the events mean here:
- an operation that failed changes nothing: a forward_backward that failed contributed no gradient,
  and the optim_step behind it applies what the others gathered, or nothing if there was nothing;
- scoring (forward_only), saving and publishing leave the window as it is. They see the weights of
  the last committed step, because gradients touch no weight before optim_step; a checkpoint also
  holds the gradients gathered since;
- loading and importing drop the gradients gathered so far, by definition, so only the lane that opened
  the window may do it. A checkpoint that was saved inside a window opens that window again when it is
  loaded with its optimizer;
- unloading drops them, too;
- nothing follows deletion: the lanes of a deleted adapter are closed with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from ..bus.errors import WindowOpen
from ..bus.ids import LaneId


class Phase(Enum):
    """By name, for snapshots hold it."""

    CLOSED = "closed"
    OPEN = "open"
    DELETED = "deleted"


class Event(Enum):
    GATHERED = auto()  # a forward_backward added its gradients
    SCORED = auto()  # a forward_only pass ran
    FAILED = auto()  # any operation failed
    COMMITTED = auto()  # an optim_step applied the gradients
    STEPPED_ON_NOTHING = auto()  # an optim_step found no gradient: an exact no-op
    REPLACED = auto()  # weights, moments and step came from elsewhere, without gradients
    REPLACED_MIDWAY = auto()  # so did they, with gradients gathered since that step
    SAVED = auto()
    PUBLISHED = auto()
    UNLOADED = auto()  # what was gathered goes with the memory
    REMOVED = auto()


TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.CLOSED, Event.GATHERED): Phase.OPEN,
    (Phase.CLOSED, Event.SCORED): Phase.CLOSED,
    (Phase.CLOSED, Event.FAILED): Phase.CLOSED,
    (Phase.CLOSED, Event.STEPPED_ON_NOTHING): Phase.CLOSED,
    (Phase.CLOSED, Event.REPLACED): Phase.CLOSED,
    (Phase.CLOSED, Event.REPLACED_MIDWAY): Phase.OPEN,
    (Phase.CLOSED, Event.SAVED): Phase.CLOSED,
    (Phase.CLOSED, Event.PUBLISHED): Phase.CLOSED,
    (Phase.CLOSED, Event.UNLOADED): Phase.CLOSED,
    (Phase.CLOSED, Event.REMOVED): Phase.DELETED,
    (Phase.OPEN, Event.GATHERED): Phase.OPEN,
    (Phase.OPEN, Event.SCORED): Phase.OPEN,
    (Phase.OPEN, Event.FAILED): Phase.OPEN,
    (Phase.OPEN, Event.COMMITTED): Phase.CLOSED,
    (Phase.OPEN, Event.REPLACED): Phase.CLOSED,
    (Phase.OPEN, Event.REPLACED_MIDWAY): Phase.OPEN,
    (Phase.OPEN, Event.SAVED): Phase.OPEN,
    (Phase.OPEN, Event.PUBLISHED): Phase.OPEN,
    (Phase.OPEN, Event.UNLOADED): Phase.CLOSED,
    (Phase.OPEN, Event.REMOVED): Phase.DELETED,
}


@dataclass(frozen=True, slots=True)
class Window:
    """step: optimizer steps committed. opened_by: the lane whose operation opened it, while it is open."""

    phase: Phase = Phase.CLOSED
    step: int = 0
    opened_by: LaneId | None = None

    @property
    def open(self) -> bool:
        return self.phase is Phase.OPEN

    def after(self, event: Event, *, step: int | None = None, lane: LaneId | None = None) -> "Window":
        """The window once `event` has happened. `step`: the new count, for events that change it.
        `lane`: by whose operation."""
        phase = TRANSITIONS.get((self.phase, event))
        assert phase is not None, f"{event.name} cannot happen while a window is {self.phase.name}"
        assert (step is not None) == (event in _CHANGE_STEP), f"{event.name} with step {step}"
        opened_by = (self.opened_by or lane) if phase is Phase.OPEN else None
        return Window(phase, self.step if step is None else step, opened_by)

    def check_replaceable(self, lane: LaneId) -> None:
        """Raises WindowOpen: weights cannot be replaced beneath gradients that another lane gathered."""
        if self.open and self.opened_by not in (None, lane):
            raise WindowOpen(
                f"another client's window is open on this adapter: it gathered gradients since step {self.step}; "
                "load once its optim_step is through, or into an adapter of your own"
            )


_CHANGE_STEP = {Event.COMMITTED, Event.REPLACED, Event.REPLACED_MIDWAY}
