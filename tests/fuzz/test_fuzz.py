"""A few hundred cases of each kind, and whether harm would be seen: `make fuzz` plays a hundred thousand."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loractl.tests.fuzz.fuzz import split
from loractl.tests.fuzz.playing import Played, play, play_all
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import MIB, Play, Subject
from loractl.tests.fuzz.subjects import SUBJECTS

SEED = 1
# Of a subject whose cases take milliseconds, and of others.
QUICK, SLOW = 400, 60
SLOW_ONES = {"http", "directories", "daemon"}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_hostile_input_ends_as_our_errors(subject: Subject) -> None:
    played = play(subject, SEED, range(SLOW if subject.name in SLOW_ONES else QUICK))

    assert played.faults == []


def test_shares_are_thousandths_of_all_cases() -> None:
    assert sum(subject.share for subject in SUBJECTS) == 1000


def subject_of(case: Callable[[Source], None], *, episode: int = 0) -> Subject:
    @contextmanager
    def opened(_directory: Path) -> Iterator[Play]:
        yield case

    return Subject(
        name="trial", share=1000, open=opened, episode=episode, limit_s=0.05, patience_s=4.0, grows_bytes=8 * MIB
    )  # fmt: skip


def played_by_others(subject: Subject, count: int = 8) -> Played:
    whole = Played()
    for _, part in play_all([*split(subject, count)], SEED, jobs=2):
        whole.add(part)
    return whole


def busy() -> None:
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass


kept: list[bytes] = []
HARM = {
    "raises": (lambda: 1 / 0, "ZeroDivisionError"),
    "dies": (lambda: os._exit(3), "ended with 3"),
    "hangs": (lambda: os.read(os.pipe()[0], 1), "hangs"),
    "is slow": (busy, "processor time"),
    "eats memory": (lambda: bytearray(2**42), "MemoryError"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_case_that_does_harm_is_named_and_the_others_are_played(harm: str) -> None:
    action, said = HARM[harm]
    asked: dict[float, None] = {}
    harmful = Source(f"{SEED} trial 5").random()

    def case(source: Source) -> None:
        asked[drawn := source.random()] = None
        if drawn == harmful:
            action()

    played = played_by_others(subject_of(case))

    assert played.cases == 8
    (fault,) = played.faults
    assert fault.case == 5
    assert said in fault.what
    assert fault.again == "make fuzz SEED=1 KIND=trial CASE=5"


def test_memory_that_stays_in_use_is_a_fault() -> None:
    def case(source: Source) -> None:
        kept.append(source.randbytes(1) * (4 * MIB))

    played = play(subject_of(case), SEED, range(16))
    kept.clear()

    assert [fault.what for fault in played.faults if "memory grew" in fault.what]


def test_a_case_is_the_same_whenever_it_is_played() -> None:
    drawn: list[float] = []

    def case(source: Source) -> None:
        drawn.append(source.random())

    play(subject_of(case), SEED, range(4))
    play(subject_of(case), SEED, range(2, 4))

    assert drawn[2:4] == drawn[4:]
