"""When what runs: fair turns over tenants, the exclusive lease, and a short wait for company. Pure.

Reads the queues, asks `fairness` whose turn it is, and lets `plan` make a turn of it. Whoever carries
turns out says what became of them with `ran`, `charge` and `gone`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from ..bus.config import Config
from ..bus.ids import AdapterId, TenantId
from ..bus.tenant_numbers import tenant_numbers
from .budgets import Room
from .costs import Costs
from .fairness import FairTurns
from .leases import Lease
from .plan import Candidate, Plan, Turn, candidate
from .queues import Queues

# Adapters that are looked at beside those on the device, so that a decision takes as long with ten
# thousand waiting as with a hundred.
_LOOKED_AT = 64
# The same where all of those wait for the disk, which is taken: whoever could run is looked for behind them.
_LOOKED_AT_BEHIND = 1024


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to run before `until`, unless something arrives."""

    until: float


class Schedule:
    """pass_tokens: positions of one pass. fuse: adapters share passes."""

    def __init__(self, config: Config, *, costs: Costs, pass_tokens: int, queues: Queues) -> None:
        trainer, fairness = config.trainer, config.fairness
        self._costs = costs
        self._pass_tokens = pass_tokens
        self._queues = queues
        self.fuse = trainer.fuse and trainer.window == "shared"
        self._fair = FairTurns(
            quantum_ms=fairness.quantum_ms,
            weights=tenant_numbers(fairness.weights, what="fairness.weights"),
            priorities=tenant_numbers(fairness.priorities, what="fairness.priorities"),
        )
        self.lease = Lease(trainer.window == "exclusive", trainer.window_lease_s)
        # Waiting for company longer than a part of what a pass costs beyond its positions gains nothing.
        self._gather_s = min(trainer.gather_s, costs.pass_ms / 1000 / 4) if self.fuse else 0.0
        self._answered: dict[AdapterId, float] = {}
        self._held_since: float | None = None

    def next_turn(self, device: Room, now: float, *, disk_is_free: bool = True) -> Turn | Wait | None:
        """What to do now; None: there is nothing to do. disk_is_free: no disk job is under way."""
        for tenant in self._queues.woken():
            self._fair.enter(tenant, expected_ms=self._expected_ms(tenant))
        if (holder := self.lease.held(now)) is not None:
            return self._turn_of(holder, device, disk_is_free) or Wait(self.lease.until)
        turn = self._turn(device, disk_is_free)
        if turn is None or not turn.members or turn.alone or turn.tokens >= self._pass_tokens:
            return turn
        until = self._better_at(turn, now)
        if until is None:
            self._held_since = None
            return turn
        self._held_since = now if self._held_since is None else self._held_since
        return Turn(turn.steps) if turn.steps else Wait(until)

    def upcoming(self, turn: Turn) -> list[AdapterId]:
        """Whose turn it is after this one, nearest first: worth having on the device by then."""
        busy = {share.adapter for share in (*turn.steps, *turn.late_steps, *turn.members)}
        return [each.adapter for each in self._candidates() if each.adapter not in busy]

    def ran(self, adapter: AdapterId, *, open_window: bool, now: float) -> None:
        """An operation of the adapter ended and was answered."""
        self.lease.ran(adapter, open_window=open_window, now=now)
        if self._gather_s:
            self._answered[adapter] = now

    def charge(self, ms_of_tenant: Mapping[TenantId, float]) -> None:
        """What tenants' work took of the trainer's time."""
        for tenant, ms in ms_of_tenant.items():
            self._fair.charge(tenant, ms)

    def gone(self, adapter: AdapterId) -> None:
        """The adapter was deleted or unloaded."""
        self.lease.gone(adapter)
        self._answered.pop(adapter, None)

    def _turn(self, device: Room, disk_is_free: bool) -> Turn | None:
        lying = self._lying(device)
        begun = device.pinned
        if self.lease.exclusive and begun:
            return self._turn_of(next(iter(begun)), device, disk_is_free)
        candidates = self._candidates()
        plan = Plan(device, self._costs, self._pass_tokens, self.fuse, begun, disk_is_free)
        leader = next(filter(plan.placeable, candidates), None)
        if leader is None and not disk_is_free:
            candidates = self._candidates(_LOOKED_AT_BEHIND)
            leader = next(filter(plan.placeable, candidates), None)
        if leader is None or self._in_the_way(leader, candidates, disk_is_free):
            # What has begun can always go on.
            leader = next((each for each in lying if each.adapter in begun), leader)
        if leader is None:
            return None
        if self.lease.exclusive or leader.alone:
            return self._turn_of(leader.adapter, device, disk_is_free)
        leader = _first_that_ran(leader, filter(plan.placeable, candidates))
        candidates, lying = ([each for each in group if not each.alone] for group in (candidates, lying))
        others = [each for each in lying if each.adapter != leader.adapter]
        eligible = [
            each
            for each in candidates
            # Its positions are part of a pass that runs again, whether it is there or not.
            if each.adapter != leader.adapter and (leader.shape or self._credit_ms(each) > 0)
        ]
        # A rider is not free: its positions lengthen the pass. Nobody gets ahead by more than one.
        deepest = -self._costs.pass_of(self._pass_tokens)
        riders = [each for each in others if self._credit_ms(each) > deepest]
        return plan.turn(leader, others, eligible, riders)

    def _in_the_way(self, leader: Candidate, candidates: list[Candidate], disk_is_free: bool) -> bool:
        """Whether one of a higher priority finds no place on the device: were the leader to go first now, it
        would wait for as long as anybody of the leader's priority has work."""
        before = takewhile(lambda each: each.adapter != leader.adapter, candidates)
        without_place = [each for each in before if each.steps or each.pieces or disk_is_free]
        return any(self._priority(each) > self._priority(leader) for each in without_place)

    def _turn_of(self, adapter: AdapterId, device: Room, disk_is_free: bool) -> Turn | None:
        """A turn of this adapter alone, up to where its window may close; None if nothing is ready."""
        queue = self._queues.of(adapter)
        if not queue:
            return None
        plan = Plan(device, self._costs, self._pass_tokens, False, frozenset(), disk_is_free)
        alone = candidate(adapter, queue, self._pass_tokens)
        if not plan.placeable(alone):
            return None
        turn = plan.turn(replace(alone, heavy=None, pieces=()) if alone.steps else alone)
        return replace(turn, alone=alone.alone)

    def _expected_ms(self, tenant: TenantId) -> float:
        """What a turn of the tenant takes at most, as far as its queues tell."""
        queues = self._queues.of_tenant(tenant).values()
        return max((self._costs.pass_of(queue[0].left[0]) for queue in queues if queue[0].left), default=0.0)

    def _credit_ms(self, each: Candidate) -> float:
        """What its tenant may take before it is in debt."""
        return self._fair.credit_ms(self._queues.of(each.adapter)[0].tenant)

    def _priority(self, each: Candidate) -> float:
        return self._fair.priority(self._queues.of(each.adapter)[0].tenant)

    def _candidates(self, most: int = _LOOKED_AT) -> list[Candidate]:
        """Adapters with work in the order of their turns, as many as are looked at, of no tenant more than
        _LOOKED_AT."""
        found: list[Candidate] = []
        for tenant in self._fair.first(most, lambda each: bool(self._queues.of_tenant(each))):
            adapters = islice(self._queues.of_tenant(tenant).items(), min(most - len(found), _LOOKED_AT))
            found += [candidate(adapter, queue, self._pass_tokens) for adapter, queue in adapters]
        return found

    def _lying(self, device: Room) -> list[Candidate]:
        """Adapters on the device that have work, in the order of their turns."""
        queues = [(self._queues.of(adapter), adapter) for adapter in device.on_device]
        ready = [(queue[0].tenant, adapter, queue) for queue, adapter in queues if queue]
        ready.sort(key=lambda each: (self._fair.rank(each[0]), each[1]))
        return [candidate(adapter, queue, self._pass_tokens) for _, adapter, queue in ready]

    def _better_at(self, turn: Turn, now: float) -> float | None:
        """Until when those who were just answered, or are by the turn's steps, may come back to share its
        pass; None: go on at once."""
        self._answered = {adapter: at for adapter, at in self._answered.items() if now < at + self._gather_s}
        if self._held_since is not None and now >= self._held_since + 2 * self._gather_s:
            return None
        missing = [at for adapter, at in self._answered.items() if adapter not in self._queues]
        # Who waits for each answer before it goes on: its step first, or it stays one pass behind for ever.
        if self._gather_s and any(share.count == len(self._queues.of(share.adapter)) for share in turn.steps):
            missing.append(now)
        return max(missing) + self._gather_s if missing else None


def _first_that_ran(leader: Candidate, candidates: Iterable[Candidate]) -> Candidate:
    """Of passes that run again the one that ran first, so that all who were in it are there."""
    if leader.shape is None:
        return leader
    again = (each for each in candidates if each.shape is not None and not each.alone)
    return min((leader, *again), key=_number)


def _number(each: Candidate) -> int:
    assert each.shape is not None
    return each.shape.number
