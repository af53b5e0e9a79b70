"""`loractl daemon start --chaos SEED`: a daemon as no client wants it, for whoever writes one. Pure.

Messages between clients and the broker get lost, come twice, late, or in another order, and an actor is
killed now and then; all of it drawn from the seed. What a client may rely on stays: see `_may_be_lost`;
and messages of one request keep their order. Whoever asks again (`Recall`, or the same request id) gets
the one outcome of each request; whether that is so is checked here, too.
"""

import hashlib
import heapq
import itertools
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..bus.codec import Buffer, Header, peek
from ..bus.config import LimitsConfig
from ..bus.errors import BadFrame
from ..bus.ids import ActorId
from ..bus.messages import Abort, Failed, Waiting

Frames = list[Buffer]
Way = Literal["asked", "told"]
Act = Literal["dropped", "duplicated", "delayed", "reordered", "killed"]

# Of a hundred messages. The rest goes as it came.
_CHANCES: dict[Act, float] = {"dropped": 3, "duplicated": 4, "delayed": 4, "reordered": 6}
_LONGEST_DELAY_S = 0.5
# One that is to be overtaken waits for another one, but no longer than this.
_OVERTAKEN_WITHIN_S = 0.05
_KILL_EVERY_S = 20.0
# Of the latest outcomes, which are compared with what is told later.
_REMEMBERED = 100_000


# Which way, whose, and of which request.
_Key = tuple[Way, str, str]


class Deed(NamedTuple):
    """What was done, for the log. what: the message's kind, or the actor."""

    act: Act
    what: str
    request: str = ""


@dataclass(order=True, slots=True)
class _Held:
    due: float
    number: int
    key: "_Key" = field(compare=False)
    frames: Frames = field(compare=False)


@dataclass(slots=True)
class Due:
    """Messages whose time has come."""

    asked: list[Frames] = field(default_factory=list)
    told: list[Frames] = field(default_factory=list)


@dataclass(slots=True)
class Chaos:
    """counts: of all acts. deeds, broken: what was done, and in words what did not hold, since they were last
    taken."""

    seed: int
    limits: LimitsConfig
    kill_every_s: float = _KILL_EVERY_S
    counts: Counter[str] = field(default_factory=Counter)
    deeds: list[Deed] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    promises_broken: int = 0
    _chance: random.Random = field(init=False)
    _held: list[_Held] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    # The held message of a request that goes last: none of its later ones overtakes it.
    _busy: dict[_Key, _Held] = field(default_factory=dict)
    _kill_at: float = math.inf
    _outcomes: "OrderedDict[tuple[str, str], bytes]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - to be drawn again, not to be secret

    # --- messages --------------------------------------------------------------------------------

    def asked(self, frames: Frames, now: float) -> list[Frames]:
        """A client's message came: what of it the broker gets now. The first frame is the client's identity."""
        header = self._header(frames)
        if header is None:
            return [frames]
        return self._meet("asked", header, frames, now)

    def told(self, frames: Frames, now: float) -> list[Frames]:
        """A message is to go to a client: what of it goes now."""
        header = self._header(frames)
        if header is None:
            return [frames]
        self._check(header, frames)
        return self._meet("told", header, frames, now)

    def due(self, now: float) -> Due:
        """What was held up until now."""
        due = Due()
        while self._held and self._held[0].due <= now:
            held = heapq.heappop(self._held)
            (due.asked if held.key[0] == "asked" else due.told).append(held.frames)
            if self._busy[held.key] is held:
                del self._busy[held.key]
        return due

    def next_due(self) -> float:
        """When `due` or `victim` has something."""
        return min(self._held[0].due if self._held else math.inf, self._kill_at)

    def rest(self) -> Due:
        """All that is still held up: the daemon ends."""
        return self.due(math.inf)

    @property
    def summary(self) -> str:
        """What was done so far, in words."""
        done = ", ".join(f"{self.counts[act]} {act}" for act in (*_CHANCES, "killed"))
        return f"seed {self.seed}: {done}; {self.promises_broken} promises broken"

    # --- actors ----------------------------------------------------------------------------------

    def victim(self, actors: Sequence[ActorId], now: float) -> ActorId | None:
        """Whom to kill now, if it is time for that. actors: who may die, without being given up for it."""
        if self._kill_at == math.inf:
            self._kill_at = now + self._pause_s()
        if now < self._kill_at:
            return None
        self._kill_at = now + self._pause_s()
        if not actors:
            return None
        victim = self._chance.choice(sorted(actors))
        self._done("killed", victim)
        return victim

    # --- what is done to a message ---------------------------------------------------------------

    def _meet(self, way: Way, header: Header, frames: Frames, now: float) -> list[Frames]:
        act = self._drawn(way, header)
        if act is not None:
            self._done(act, header.kind, header.request)
        match act:
            case "dropped":
                return []
            case "duplicated":
                first = self._after_earlier(way, header, frames)
                self._hold(way, header, frames, now + self._delay_s(_LONGEST_DELAY_S))
                return first
            case "delayed":
                self._hold(way, header, frames, now + self._delay_s(_LONGEST_DELAY_S))
                return []
            case "reordered":
                self._hold(way, header, frames, now + self._delay_s(_OVERTAKEN_WITHIN_S))
                return []
            case _:
                return self._after_earlier(way, header, frames)

    def _drawn(self, way: Way, header: Header) -> Act | None:
        drawn = self._chance.uniform(0, 100)
        for act, chance in _CHANCES.items():
            if drawn < chance:
                return act if _allowed(act, way, header) else None
            drawn -= chance
        return None

    def _after_earlier(self, way: Way, header: Header, frames: Frames) -> list[Frames]:
        """Messages of one request come in their order, and an Abort behind whatever it may be meant for."""
        earlier = self._busy.get((way, header.tenant, header.request))
        if header.kind == Abort.kind:
            earlier = max(self._held, default=None)
        if earlier is None:
            return [frames]
        self._hold(way, header, frames, earlier.due)
        return []

    def _hold(self, way: Way, header: Header, frames: Frames, due: float) -> None:
        key = (way, header.tenant, header.request)
        if (earlier := self._busy.get(key)) is not None:
            due = max(due, earlier.due)
        held = self._busy[key] = _Held(due, next(self._numbers), key, [bytes(each) for each in frames])
        heapq.heappush(self._held, held)

    # --- small change ----------------------------------------------------------------------------

    def _check(self, header: Header, frames: Frames) -> None:
        """One request, one outcome, however often it is told."""
        key = (header.tenant, header.request)
        if not header.last or header.kind == Failed.kind or header.kind in _ANSWERED_ANEW:
            return
        digest = hashlib.sha256(b"".join(bytes(each) for each in frames[1:])).digest()
        if self._outcomes.setdefault(key, digest) != digest:
            self.promises_broken += 1
            self.broken.append(f"request {header.request} of {header.tenant} was told another {header.kind}")
        if len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)

    def _header(self, frames: Frames) -> Header | None:
        try:
            return peek(frames[1], self.limits) if len(frames) > 1 else None
        except BadFrame:
            return None

    def _done(self, act: Act, what: str, request: str = "") -> None:
        self.counts[act] += 1
        self.deeds.append(Deed(act, what, request))

    def _delay_s(self, longest_s: float) -> float:
        return self._chance.uniform(0, longest_s)

    def _pause_s(self) -> float:
        return self._chance.expovariate(1 / self.kill_every_s)


# Answers to questions about the moment: another one is no contradiction.
_ANSWERED_ANEW = frozenset({"pong", "daemon_status", "version_table", "recalled", "history"})


def _allowed(act: Act, way: Way, header: Header) -> bool:
    if header.kind == Abort.kind:  # said once and never answered
        return False
    if act == "dropped":
        return _may_be_lost(way, header)
    if act == "duplicated":
        return way == "asked" or header.last
    return True


def _may_be_lost(way: Way, header: Header) -> bool:
    """Everything that a client asks for again: any request, and any answer but a part of a streamed one."""
    return way == "asked" or header.last or header.kind == Waiting.kind
