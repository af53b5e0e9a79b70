"""A filter that never says no to what is there, and seldom yes to what is not."""

import random

from loractl.bus.ids import RequestId, TenantId
from loractl.daemon.journal.known_ids import KnownIds, id_of


def ids(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.getrandbits(64) - 2**63 for _ in range(count)]


def test_it_never_misses_one_however_often_it_grew():
    there = ids(5000, seed=1)
    known = KnownIds(there[:1000], room=64)

    for one in there[1000:]:
        known.add(one)

    assert all(one in known for one in there)


def test_it_seldom_takes_a_stranger_for_one_of_its_own():
    known = KnownIds(ids(20_000, seed=1), room=20_000)

    mistaken = sum(one in known for one in ids(20_000, seed=2))

    assert mistaken / 20_000 < 0.01


def test_ids_are_the_same_in_every_process_and_differ_between_tenants():
    mine = (TenantId("alice"), RequestId("r1"))

    assert id_of(mine) == id_of(mine) == 6545500851362146759
    assert id_of(mine) != id_of((TenantId("bob"), RequestId("r1")))
