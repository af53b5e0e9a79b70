"""What the broker takes for an answer while the trainer runs operations again."""

from pathlib import Path

from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    OptimStep,
    Recovered,
    StepResult,
    UnloadAdapter,
    Waiting,
)
from loractl.daemon.decisions import Say
from loractl.tests.daemon.journalled_office import JournalledOffice, forwarded, told
from loractl.tests.daemon.office import LORA, TRAINER, details_of


def trained(office: JournalledOffice) -> AdapterId:
    """An adapter with a step that has ended, and a trainer that died and is back."""
    office.settled(office.ready(TRAINER))
    (sent,) = forwarded(office.settled(office.ask(CreateAdapter(name="pirate", lora=LORA), request="c")))
    assert isinstance(sent, CreateAdapter)
    created = AdapterCreated(details=details_of(sent.adapter), lane=sent.lane)
    office.settled(office.answer(TRAINER, created, request="c"))
    office.settled(office.ask(step(sent.adapter, sent.lane), request="s"))
    office.settled(office.answer(TRAINER, STEPPED, request="s"))
    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))
    again = office.answer(TRAINER, Recovered(step=0), request="recover-1", tenant=OURS)
    assert [each.kind for each in forwarded(office.settled(again))] == ["optim_step"]
    return sent.adapter


def step(adapter: AdapterId, lane: LaneId) -> OptimStep:
    return OptimStep(adapter=adapter, lane=lane, seq=1, learning_rate=0.1)


OURS = "(broker)"
STEPPED = StepResult(applied=True, step=1, grad_norm=1.0, learning_rate=0.1, tokens=1)


def test_a_word_about_its_turn_is_no_answer_of_what_runs_again(tmp_path: Path) -> None:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    adapter = trained(office)

    waits = office.settled(office.answer(TRAINER, Waiting(reason="others"), request="s", last=False))
    asked = office.settled(office.ask(UnloadAdapter(adapter=adapter), request="u"))
    done = office.settled(office.answer(TRAINER, STEPPED, request="s"))

    assert waits == []
    assert ([*forwarded(asked)], [each.kind for each in told(asked)]) == ([], ["waiting"])
    assert not [each for each in done if isinstance(each, Say)]
    assert [each.kind for each in forwarded(done)] == ["unload_adapter"]
