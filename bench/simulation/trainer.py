"""The trainer's loop as `actor` and `turns` of the trainer run it, on its real parts; passes only take time.

The same calls in the same order: take in, expire, tell who waits, decide on a turn, run its steps, place
its members, run its pass, charge, answer.
"""

from collections.abc import Sequence

from loractl.bus.config import Config
from loractl.bus.ids import AdapterId
from loractl.bus.messages import CreateAdapter, Drain, Envelope, ForwardBackward
from loractl.trainer_actor.accounts import Accounts, PassShare
from loractl.trainer_actor.costs import Costs
from loractl.trainer_actor.fingerprint import fingerprint
from loractl.trainer_actor.lanes import Answer, Lanes
from loractl.trainer_actor.notices import Notices
from loractl.trainer_actor.plan import Share, Turn
from loractl.trainer_actor.queues import Operation, Queued
from loractl.trainer_actor.schedule import Schedule

from .answers import created, lane_of, passed, stepped
from .costs import Machine
from .device import VirtualDevice
from .record import Record
from .tenants import Tenant
from .world import World

_IDLE_S = 1.0


class FairTrainer:
    def __init__(self, config: Config, world: World, machine: Machine, record: Record) -> None:
        self._link = world
        self._machine = machine
        self._record = record
        self._lanes = Lanes(
            gap_timeout_s=config.trainer.lane_gap_timeout_s,
            kept_bytes=config.limits.outcome_bytes,
            pass_tokens=machine.pass_tokens,
            max_ahead=max(config.limits.inflight_per_tenant, 1024),
        )
        self._queues = self._lanes.queues
        costs = Costs(
            pass_ms=machine.pass_ms + machine.adapter_ms,
            token_ms=machine.token_ms,
            copy_bytes_per_ms=machine.copy_bytes_per_ms,
        )
        self._schedule = Schedule(config, costs=costs, pass_tokens=machine.pass_tokens, queues=self._queues)
        self._notices = Notices(self._lanes, self._schedule.lease, fuse=self._schedule.fuse)
        self._accounts = Accounts()
        self._device = VirtualDevice(config, machine, world, record)
        self._tenants: dict[AdapterId, Tenant] = {}
        self._stopping = False

    def run(self) -> None:
        self._link.ready()
        patience_s = 0.0
        while not self._stopping:
            came = self._link.receive(patience_s)
            now = self._link.now
            with self._record.keeping.measured():
                for envelope in came:
                    self._take_in(envelope)
                due = [*self._lanes.expire(now), *self._notices.due(now)]
            self._send(due)
            patience_s = self._run_next(now)
            self._record.turn_ended()

    def _run_next(self, now: float) -> float:
        """Run the next turn, if there is one. Returns for how many seconds there is nothing to do then."""
        with self._record.deciding.measured():
            decision = self._schedule.next_turn(self._device.room(), now)
        if isinstance(decision, Turn):
            self._run_turn(decision)
            return 0.0
        return min(_IDLE_S, max(decision.until - now, 0.0)) if decision else _IDLE_S

    # --- taking in ---------------------------------------------------------------------------

    def _take_in(self, envelope: Envelope) -> None:
        match envelope.body:
            case Drain():
                self._stopping = True
            case CreateAdapter():
                tenant = self._link.tenant(envelope)
                self._tenants[tenant.adapter] = tenant
                self._device.admit(tenant)
                self._lanes.open(tenant.adapter, lane_of(tenant))
                self._link.reply(envelope, created(tenant, self._machine))
            case body if isinstance(body, Operation):
                assert self._lanes.knows(body)
                settled = self._lanes.admit(envelope, body, fingerprint(body), self._link.now)
                assert not settled, "nothing is sent twice"
                self._notices.arrived(envelope, body)

    # --- running -----------------------------------------------------------------------------

    def _run_turn(self, turn: Turn) -> None:
        assert turn.single is None, "nobody asks for more than passes and steps"
        self._run_steps(turn.steps)
        if turn.late_steps:
            self._place(turn)
            self._run_steps(turn.late_steps)
        if turn.members:
            self._run_pass(turn)
        self._link.turn()

    def _run_steps(self, shares: Sequence[Share]) -> None:
        """Light operations, the first of each adapter as one batch, then the second of each, and so on."""
        for place in range(max((share.count for share in shares), default=0)):
            batch = [self._queues.of(share.adapter)[0] for share in shares if share.count > place]
            took_ms = sum(self._machine.step_cost_ms(self._tenant(queued).rank) for queued in batch)
            for queued in batch:
                self._link.begun(queued.askers[0].request)
            self._link.spend(took_ms)
            for queued in batch:
                tenant, share_ms = self._tenant(queued), took_ms / len(batch)
                self._record.ran_step(tenant, share_ms)
                with self._record.deciding.measured():
                    self._schedule.charge(self._accounts.stepped(tenant.adapter, tenant.id, share_ms))
                self._device.stepped(tenant.adapter)
                self._finish(queued, open_window=False)

    def _run_pass(self, turn: Turn) -> None:
        with self._record.deciding.measured():
            upcoming = self._schedule.upcoming(turn)
        self._place(turn, soon=upcoming)
        members = [
            queued for share in turn.members for queued in [*self._queues.of(share.adapter)][: share.count]
        ]
        for queued in members:
            self._link.begun(queued.askers[0].request)
            if not queued.ran:
                self._device.pin(queued.operation.adapter)
        self._device.prefetch(upcoming)
        pieces = [(self._tenant(queued), queued.left[0]) for queued in members]
        took_ms = self._machine.pass_cost_ms(
            sum(positions for _, positions in pieces), len({tenant.number for tenant, _ in pieces})
        )
        self._link.spend(took_ms)
        alone_ms = sum(self._machine.pass_cost_ms(positions) for _, positions in pieces)
        self._record.ran_pass(pieces, took_ms, alone_ms)
        with self._record.deciding.measured():
            shares = [
                PassShare(each.adapter, each.id, positions, ended=len(queued.left) == 1)
                for (each, positions), queued in zip(pieces, members, strict=True)
            ]
            self._schedule.charge(self._accounts.pass_ran(shares, took_ms))
        for queued in members:
            queued.ran += 1
            if not queued.left:
                self._device.unpin(queued.operation.adapter)
                self._device.gathered(queued.operation.adapter)
                self._finish(queued, open_window=True)
        for share in turn.members:
            self._queues.rotate(share.adapter)

    def _place(self, turn: Turn, soon: Sequence[AdapterId] = ()) -> None:
        """Have all members on the device together; who is brought there is charged for it."""
        adapters = [share.adapter for share in (*turn.late_steps, *turn.members)]
        coming = [each for each in adapters if not self._device.on_device(each)]
        began = self._link.now
        self._device.place_all(adapters, soon)
        ms = (self._link.now - began) * 1000
        with self._record.deciding.measured():
            for each in coming:
                tenant = self._tenants[each].id
                self._schedule.charge(self._accounts.placed(each, tenant, ms / len(coming)))

    def _finish(self, queued: Queued, *, open_window: bool) -> None:
        operation = queued.operation
        outcome = passed(operation) if isinstance(operation, ForwardBackward) else stepped()
        with self._record.keeping.measured():
            answers = self._lanes.finish(queued, outcome)
        self._send(answers)
        with self._record.keeping.measured():
            self._schedule.ran(operation.adapter, open_window=open_window, now=self._link.now)

    def _tenant(self, queued: Queued) -> Tenant:
        return self._tenants[queued.operation.adapter]

    def _send(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._link.reply(answer.to, answer.body, answer.last)
