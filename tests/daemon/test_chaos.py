"""What `--chaos` may do to messages and what it may not, whatever the seed."""

from collections import defaultdict

import pytest
from loractl.bus.codec import encode, peek
from loractl.bus.config import LimitsConfig
from loractl.bus.ids import ActorId, RequestId, TenantId
from loractl.bus.messages import Abort, Done, Envelope, GetStatus, ListTenants, Message, Sample, TenantList
from loractl.daemon.chaos import Chaos
from loractl.tests.daemon.office import sample

LIMITS = LimitsConfig()
ACTORS = [ActorId("trainer"), ActorId("sampler-0")]
DONE, PART = Done(), TenantList(tenants=())


def chaos(seed: int) -> Chaos:
    return Chaos(seed, LIMITS)


def frames(body: Message, request: str, *, last: bool = True) -> list[bytes]:
    envelope = Envelope(request=RequestId(request), tenant=TenantId("alice"), body=body, last=last)
    return [b"ann", *encode(envelope)]


class Wire:
    """What comes out on the other end, in order: (request, kind)."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.now = 0.0
        self.asked: list[tuple[str, str]] = []
        self.told: list[tuple[str, str]] = []

    def ask(self, body: Message, request: str) -> None:
        self._take([self.chaos.asked(frames(body, request), self.now), []])

    def tell(self, body: Message, request: str, *, last: bool = True) -> None:
        self._take([[], self.chaos.told(frames(body, request, last=last), self.now)])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due = self.chaos.due(self.now)
        self._take([due.asked, due.told])

    def _take(self, come: list[list[list[bytes]]]) -> None:
        for seen, messages in zip((self.asked, self.told), come, strict=True):
            for each in messages:
                header = peek(each[1], LIMITS)
                seen.append((header.request, header.kind))


def busy(seed: int, count: int = 400) -> Wire:
    """Requests and answers of one each, a millisecond apart."""
    wire = Wire(chaos(seed))
    for number in range(count):
        wire.ask(ListTenants(), f"r{number}")
        wire.tell(DONE, f"r{number}")
        wire.wait(0.001)
    wire.wait(10)
    return wire


def test_a_seed_does_the_same_again_and_another_seed_something_else():
    first, again, other = busy(1), busy(1), busy(2)

    assert (first.asked, first.told) == (again.asked, again.told)
    assert first.asked != other.asked


@pytest.mark.parametrize("seed", range(5))
def test_messages_get_lost_come_twice_and_out_of_order_both_ways(seed: int):
    wire = busy(seed)

    for seen in (wire.asked, wire.told):
        numbers = [int(request[1:]) for request, _ in seen]
        assert {*numbers} < {*range(400)}
        assert len(numbers) > len({*numbers})
        assert numbers != sorted(numbers)
    assert all(wire.chaos.counts[act] for act in ("dropped", "duplicated", "delayed", "reordered"))


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_a_streamed_answer_all_come_once_in_order_before_its_end(seed: int):
    wire = Wire(chaos(seed))

    for number in range(100):
        for kind in (PART, TenantList(tenants=()), DONE):
            wire.tell(kind, f"r{number}", last=kind is DONE)
        wire.wait(0.002)
    wire.wait(10)

    came = defaultdict(list)
    for request, kind in wire.told:
        came[request].append(kind)
    for kinds in came.values():
        assert kinds[:2] == [PART.kind] * 2
        assert kinds[2:] in ([], [DONE.kind], [DONE.kind] * 2)


@pytest.mark.parametrize("seed", range(20))
def test_an_abort_is_never_lost_and_never_comes_before_its_target(seed: int):
    wire = Wire(chaos(seed))

    for number in range(100):
        wire.ask(sample(), f"s{number}")
        wire.ask(Abort(target=RequestId(f"s{number}")), f"a{number}")
        wire.wait(0.002)
    wire.wait(10)

    order = {request: index for index, (request, _) in reversed([*enumerate(wire.asked)])}
    for number in range(100):
        assert sum(request == f"a{number}" for request, _ in wire.asked) == 1
        assert order.get(f"s{number}", -1) < order[f"a{number}"]
    assert Sample.kind in {kind for _, kind in wire.asked}


def test_under_steady_load_nothing_is_kept_of_requests_whose_messages_went():
    wire = Wire(chaos(1))

    for number in range(5_000):
        wire.ask(ListTenants(), f"r{number}")
        wire.tell(DONE, f"r{number}")
        wire.wait(0.001)

    assert wire.chaos._held
    assert len(wire.chaos._busy) <= len(wire.chaos._held) < 200


def test_a_message_never_overtakes_one_of_its_request_that_is_due_and_not_yet_taken():
    came = []
    for seed in range(200):
        observed = chaos(seed)
        if observed.told(frames(PART, "r1", last=False), 0.0):
            continue  # it was not held up
        assert observed.told(frames(DONE, "r1"), 100.0) == []
        came.append([peek(each[1], LIMITS).last for each in observed.due(100.0).told])

    assert len(came) > 5
    assert [order for order in came if order[:1] != [False]] == []


def test_two_different_outcomes_of_one_request_are_a_broken_promise():
    observed = chaos(1)

    for body in (DONE, DONE, PART):
        observed.told(frames(body, "r1"), 0.0)
    for body in (GetStatus(), DONE):
        observed.told(frames(body, "r2", last=False), 0.0)

    assert (observed.promises_broken, len(observed.broken)) == (1, 1)
    assert "1 promises broken" in observed.summary


def test_actors_are_killed_now_and_then_and_only_those_that_may_be():
    observed = chaos(3)

    killed = [observed.victim(ACTORS[:1] if now % 2 else [], float(now)) for now in range(1000)]

    assert {*killed} == {None, ACTORS[0]}
    assert 10 < observed.counts["killed"] < 60


def test_what_cannot_be_read_passes_as_it_is():
    for broken in ([b"ann"], [b"ann", b"\xc1"], [b"ann", b""]):
        assert chaos(1).asked(broken, 0.0) == [broken]
