"""One client of a crowd: sends a track's lives without waiting, and compares every answer.

When the trainer restarts it learns from the answers what ran, opens a new lane and goes on where its
open window began, because the window's gradients were its old lane's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DeleteAdapter,
    Done,
    LaneOpened,
    ListAdapters,
    Message,
    OpenLane,
    UnloadAdapter,
    Usage,
)
from loractl.tests.trainer_actor.loop.harness import Reply, checked
from loractl.tests.trainer_actor.schedules.alone import Alone, Lives
from loractl.tests.trainer_actor.schedules.lives import Life, Save, Unload, message_of
from loractl.tests.trainer_actor.schedules.said import counters, differences, said
from loractl.tests.trainer_actor.schedules.schedule import Track
from loractl.tests.trainer_actor.schedules.trainers import Stage

# How operations end that were not run because their trainer stopped, or their adapter was deleted.
STOPPED = ("actor_stopping", "lane_lost")
DELETED = ("aborted", "adapter_not_found")


@dataclass(slots=True)
class Outcome:
    """differences: in words, of whom and where; none if every adapter was as if alone. usage: what the
    trainer says that each adapter took of it."""

    differences: list[str] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)


@dataclass(slots=True)
class Client:
    """One track's. sent: the index of each operation that waits for its answer, and its requests.
    done: operations answered. unloaded: operations that let go of the memory, which is done once."""

    stage: Stage
    lives: Lives
    track: Track
    outcome: Outcome
    adapter: AdapterId = field(init=False)
    lane: LaneId = field(init=False)
    number: int = 0
    seq: int = 0
    next: int = 0
    done: int = 0
    sent: list[tuple[int, list[RequestId]]] = field(default_factory=list)
    unloaded: set[int] = field(default_factory=set)

    @property
    def life(self) -> Life:
        return self.track.lives[self.number]

    @property
    def alone(self) -> Alone:
        return self.lives.alone(self.life)

    @property
    def tenant(self) -> TenantId:
        return TenantId(self.track.tenant)

    def ask_for_birth(self) -> RequestId:
        return self.request(CreateAdapter(name=self.track.name, lora=self.life.lora))

    def born(self, request: RequestId) -> None:
        created = checked(self.stage.office.wait(request), AdapterCreated)
        self.adapter, self.lane = created.details.adapter, created.lane
        self.seq = self.next = self.done = 0
        self.unloaded = set()

    # --- living ------------------------------------------------------------------------------

    def send(self, count: int, manner: str) -> bool:
        """Send the next operations, or begin the next life if all are sent. False: nothing is left."""
        if self.next == len(self.life.ops):
            return self._next_life()
        indices = range(self.next, min(self.next + count, len(self.life.ops)))
        fresh = [index for index in indices if isinstance(self.life.ops[index], Unload)]
        fresh = [index for index in fresh if index not in self.unloaded]
        if fresh:
            indices = range(self.next, fresh[0] + 1)
        self._send(indices, manner)
        if fresh:
            self._unload(fresh[0])
        return True

    def settle(self) -> None:
        """Wait for all answers; each must be what the life says alone."""
        for index, answers in self._answers():
            self._compare(index, answers)

    def recover(self) -> None:
        """Go on after a restart."""
        stopped = False
        for index, answers in self._answers():
            codes = [getattr(answer, "code", "") for answer in answers]
            stopped = stopped or any(code in STOPPED for code in codes)
            if not stopped:
                self._compare(index, answers)
            elif not all(code in STOPPED for code in codes):
                self._differs(index, f"answered {codes} behind one that did not run")
        self._reopen()

    def end(self) -> None:
        """Wait for everything, look at all that is left of the adapter, and delete it."""
        self.settle()
        self._look()
        self.ask(DeleteAdapter(adapter=self.adapter), Done)

    def _send(self, indices: range, manner: str) -> None:
        messages = [(index, message_of(self.life.ops[index], index, self._where())) for index in indices]
        waiting: dict[int, list[RequestId]] = {}
        for index, message in reversed(messages) if manner == "backwards" else messages:
            times = 2 if manner == "twice" else 1
            waiting[index] = [self.request(message) for _ in range(times)]
        self.sent += [(index, waiting[index]) for index in indices]
        self.next = indices.stop

    def _next_life(self) -> bool:
        if self.number + 1 == len(self.track.lives):
            return False
        if not self.track.rude:
            self.settle()
            self._look()
        gone = self.request(DeleteAdapter(adapter=self.adapter))
        self.number += 1
        request = self.ask_for_birth()
        checked(self.stage.office.wait(gone), Done)
        self._bury(self.track.lives[self.number - 1])
        self.born(request)
        return True

    def _bury(self, life: Life) -> None:
        """What was under way when the adapter was deleted ran as alone, or not at all."""
        alone, gone = self.lives.alone(life), False
        for index, answers in self._answers():
            for answer in answers:
                gone = gone or getattr(answer, "code", "") in DELETED
                if not gone and not isinstance(answer, CheckpointSaved):  # its file is deleted as well
                    for difference in differences(
                        said(answer, self.stage.office.layout), alone.told[index].answer
                    ):
                        self._differs(index, difference)

    def _unload(self, index: int) -> None:
        self.unloaded.add(index)
        self.settle()
        self.ask(UnloadAdapter(adapter=self.adapter), Done)
        self._reopen()

    def _reopen(self) -> None:
        opened = self.ask(OpenLane(adapter=self.adapter), LaneOpened)
        if opened.details.step != self.alone.step_after(self.done):
            self._differs(self.done, f"is at step {opened.details.step} when it is taken up again")
        self.lane, self.seq = opened.lane, 0
        self.next = self.done = self.alone.begin_again(self.life.ops, self.done)

    # --- looking -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Compare the whole state and what is listed of it."""
        index = len(self.life.ops)
        saved = self.stage.office.wait(self.request(message_of(Save(), index, self._where())))
        [details] = self.ask(ListAdapters(name=self.track.name), AdapterList).adapters
        self.outcome.usage.append(details.usage)
        for difference in [
            *differences(said(saved, self.stage.office.layout), self.alone.end),
            *differences(counters(details), self.alone.counters),
        ]:
            self._differs(index, difference)

    def _answers(self) -> Sequence[tuple[int, list[Message]]]:
        sent, self.sent = self.sent, []
        wait = self.stage.office.wait
        return [(index, [wait(request) for request in requests]) for index, requests in sent]

    def _compare(self, index: int, answers: Sequence[Message]) -> None:
        self.done = index + 1
        for answer in answers:
            told = self.alone.told[index].answer
            for difference in differences(said(answer, self.stage.office.layout), told):
                self._differs(index, difference)

    def _differs(self, index: int, what: str) -> None:
        where = f"{self.track.name}, life {self.number}, operation {index}"
        self.outcome.differences.append(f"{where}: {what}")

    # --- talking -----------------------------------------------------------------------------

    def request(self, message: Message) -> RequestId:
        return self.stage.office.send(message, self.tenant)

    def ask(self, message: Message, kind: type[Reply]) -> Reply:
        return checked(self.stage.office.wait(self.request(message)), kind)

    def _where(self) -> dict[str, object]:
        self.seq += 1
        return {"adapter": self.adapter, "lane": self.lane, "seq": self.seq}
