"""However news travels to a sampler, the files of every version that was retired are dropped.

The broker and what a sampler decides (its follower of events, its table of versions) are real; the
wires between them are lists, of which one may lose what it carries.
"""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.follower import EventFollower, TableQuestions
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import (
    AdapterDeleted,
    AdapterPublished,
    DeleteVersion,
    DropVersion,
    Envelope,
    GetVersions,
    Message,
    PublishAdapter,
    VersionRetired,
    VersionTable,
    VersionWritten,
)
from loractl.daemon.decisions import Decision, Publish, Tell
from loractl.sampler_actor.engine import VersionKey
from loractl.sampler_actor.versions import Decision as Step
from loractl.sampler_actor.versions import Load, LoadedVersions, Release, Remove
from loractl.tests.daemon.office import SAMPLER, TRAINER, Office, record, served, small

AD1 = AdapterId("ad-1")
PUBLISH = PublishAdapter(adapter=AD1, lane=LaneId("ln-1"), seq=1)


class Scene:
    """A broker with a trainer, and one sampler that has just said that it is ready."""

    def __init__(self) -> None:
        self.office = Office(config=small(keep_versions=1), roles={TRAINER: "trainer", SAMPLER: "sampler"})
        self.events: deque[Message] = deque()  # may lose some
        self.answers: deque[Envelope] = deque()  # as the sampler's socket: in order, without loss
        self.follower = EventFollower()
        self.versions = LoadedVersions(max_loaded=1)
        self.questions = TableQuestions()
        self.written = 0
        self.disk: set[int] = set()
        for actor in (TRAINER, SAMPLER):
            self.perform(self.office.ready(actor))

    # --- what happens

    def publish(self, *, held: bool) -> None:
        self.written += 1
        self.disk.add(self.written)
        name, written = f"p{self.written}", VersionWritten(record=record(self.written, held=held))
        self.perform(self.office.ask(PUBLISH, request=name))
        self.perform(self.office.answer(TRAINER, written, request=name))
        self.perform(self.office.report(SAMPLER, served(SAMPLER, self.written)))

    def delete(self, number: int) -> None:
        body = DeleteVersion(adapter=AD1, version=number)
        self.perform(self.office.ask(body, request=f"d{number}"))

    def ask(self) -> None:
        self.send(self.questions.ask(now=0.0))

    def send(self, question: RequestId | None) -> None:
        if question is not None:
            self.perform(self.office.answer(SAMPLER, GetVersions(), request=question, tenant=TenantId("")))

    def hear_answer(self) -> None:
        """As the link does it."""
        if self.answers:
            answer = self.answers.popleft()
            self.hear(answer.body)
            self.send(self.questions.answered(answer.request, now=0.0))

    def hear_event(self) -> None:
        if self.events:
            self.hear(self.events.popleft())

    def lose_event(self) -> None:
        if self.events:
            self.events.popleft()

    def use(self, number: int) -> None:
        """Have a version loaded, as a request would."""
        key = VersionKey(AD1, number)
        if self.versions.knows(key):
            self.versions.pin(key)
            self.step(self.versions.need(key))
            self.step(self.versions.done(key))
            self.step(self.versions.unpin(key))

    def settle(self) -> None:
        """The sampler looks at the table once more, as it does now and then, and hears all."""
        self.ask()
        while self.answers or self.events:
            self.hear_answer()
            self.hear_event()

    # --- what it leads to

    def perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Publish(event=event):
                    self.events.append(event)
                case Tell(envelope=Envelope(body=DropVersion(version=number))):
                    self.disk.remove(number)
                case Tell(envelope=envelope):
                    self.answers.append(envelope)
                case _:
                    pass  # what clients read

    def hear(self, message: Message) -> None:
        for news in self.follower.hear(message):
            match news:
                case VersionTable(records=records):
                    _, steps = self.versions.reconcile(records)
                    self.step(steps)
                case AdapterPublished(record=new):
                    self.versions.learn([new])
                case VersionRetired(adapter=adapter, version=number):
                    self.step(self.versions.retire(VersionKey(adapter, number)))
                case AdapterDeleted(adapter=adapter):
                    self.step(self.versions.delete(adapter))

    def step(self, steps: list[Step]) -> None:
        for each in steps:
            match each:
                case Load(record=loaded):
                    self.step(self.versions.loaded(VersionKey(loaded.adapter, loaded.number)))
                case Remove(key=key):
                    self.step(self.versions.removed(key))
                case Release(key=key):
                    self.perform(self.office.release(SAMPLER, key.number))

    def live(self) -> set[int]:
        return {each.number for each in self.office.broker._publishing.versions.table().records}


def test_a_version_that_was_retired_before_the_sampler_read_a_table_leaves_no_files():
    scene = Scene()
    scene.publish(held=False)
    scene.publish(held=False)

    scene.settle()

    assert scene.disk == {2}


def test_a_version_that_only_an_early_table_names_leaves_no_files():
    scene = Scene()
    scene.publish(held=False)
    scene.ask()
    scene.publish(held=False)  # retires version 1

    scene.settle()

    assert scene.disk == {2}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_order_or_loss_of_news_keeps_files_or_takes_those_of_a_live_version(data: st.DataObject):
    scene = Scene()
    happenings = ["publish", "publish", "hold", "delete", "ask", "answer", "event", "event", "lose", "use"]
    for happening in data.draw(st.lists(st.sampled_from(happenings), max_size=40)):
        match happening:
            case "publish" | "hold":
                scene.publish(held=happening == "hold")
            case "delete" if scene.written:
                scene.delete(data.draw(st.integers(1, scene.written)))
            case "use" if scene.written:
                scene.use(data.draw(st.integers(1, scene.written)))
            case "ask":
                scene.ask()
            case "answer":
                scene.hear_answer()
            case "event":
                scene.hear_event()
            case "lose":
                scene.lose_event()
        assert scene.live() <= scene.disk

    scene.settle()

    assert scene.disk == scene.live()
    assert {
        number for number in range(1, scene.written + 1) if scene.versions.knows(VersionKey(AD1, number))
    } == (scene.live())
