"""In which passes an operation ran is told to the trainer when it runs again, and to nobody elsewhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.codec import encode, peek
from loractl.bus.config import Config
from loractl.bus.ids import RequestId
from loractl.bus.messages import Envelope, ForwardBackward, Message, PassResult, ReadOperation, Recovered
from loractl.daemon.compositions import without
from loractl.daemon.decisions import Forward
from loractl.tests.daemon.journalled_office import JournalledOffice, created, forwarded, gather, passed, told
from loractl.tests.daemon.office import ALICE, TRAINER


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


NOTED = replace(passed(), composition=np.arange(5, dtype=np.uint8))


def again_after_the_trainer_died(office: JournalledOffice) -> list[Message]:
    """What the next trainer gets, once it has taken the adapter up."""
    office.lose(TRAINER)
    decisions = office.settled(office.ready(TRAINER))
    (asked,) = [each for each in decisions if isinstance(each, Forward)]
    request = peek(asked.frames[0], office.config.limits)
    back = office.answer(TRAINER, Recovered(step=0), request=request.request, tenant=request.tenant)
    return forwarded(office.settled(back))


def test_an_operation_comes_again_with_the_composition_that_its_outcome_told(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    for seq, outcome in enumerate((NOTED, passed()), start=1):
        office.settled(office.ask(gather(adapter, lane, seq), request=f"f{seq}"))
        office.settled(office.answer(TRAINER, outcome, request=f"f{seq}"))

    first, second = again_after_the_trainer_died(office)

    assert isinstance(first, ForwardBackward)
    assert first.composition.tobytes() == NOTED.composition.tobytes()
    assert first.tokens.tolist() == gather(adapter, lane, 1).tokens.tolist()
    assert isinstance(second, ForwardBackward)
    assert not second.composition.size


def test_an_operation_is_read_with_the_composition_that_its_outcome_told(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(gather(adapter, lane, 1), request="f1"))
    office.settled(office.answer(TRAINER, NOTED, request="f1"))
    (logged,) = [each for each in office.store.history(adapter, 0, 9) if each.kind == ForwardBackward.kind]

    operation, outcome = told(office.ask(ReadOperation(adapter=adapter, number=logged.number), request="h"))

    assert isinstance(operation, ForwardBackward)
    assert isinstance(outcome, PassResult)
    assert operation.composition.tobytes() == outcome.composition.tobytes() == NOTED.composition.tobytes()


def test_who_is_elsewhere_hears_nothing_of_others_in_a_pass() -> None:
    limits = Config().limits
    told_all = encode(Envelope(request=RequestId("f1"), tenant=ALICE, body=NOTED))
    plain = encode(Envelope(request=RequestId("f1"), tenant=ALICE, body=passed()))

    assert without(told_all, limits) == plain
    assert without(plain, limits) is plain
