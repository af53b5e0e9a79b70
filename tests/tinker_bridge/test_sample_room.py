"""Room for samples: anyone's while there is some, and by shares beyond that."""

from contextlib import ExitStack

from loractl.bus.ids import TenantId
from loractl.tinker_bridge.sample_room import SampleRoom, weight

ANN, BEN, CAT = TenantId("ann"), TenantId("ben"), TenantId("cat")


def test_all_of_the_room_is_one_tenants_who_is_alone() -> None:
    room = SampleRoom(4)

    with room.taken(ANN, 3):
        assert not room.full(ANN)
        with room.taken(ANN):
            assert room.full(ANN)
    assert not room.full(ANN)


def test_beyond_it_everybody_gets_up_to_their_share() -> None:
    room = SampleRoom(6)
    with ExitStack() as held:
        held.enter_context(room.taken(ANN, 6))
        for _ in range(3):
            assert not room.full(BEN)
            held.enter_context(room.taken(BEN))

        assert room.full(BEN)
        assert room.full(ANN)
        assert not room.full(CAT)


def test_a_share_is_one_at_least_and_room_is_given_back_by_whom_it_was_taken() -> None:
    room = SampleRoom(1)
    with room.taken(ANN):
        assert not room.full(BEN)
        with room.taken(BEN):
            assert room.full(BEN)

    assert not room.full(ANN)
    assert not room.full(BEN)


def test_samples_that_weigh_much_hold_up_their_own_tenant_only() -> None:
    room = SampleRoom(100, held_bytes=1000)
    with room.taken(ANN, weight_bytes=700):
        assert room.full(ANN, 301)
        assert not room.full(ANN, 300)
        assert not room.full(BEN, 5000)  # alone it may be as large as it likes

    assert not room.full(ANN, 1001)


def test_every_sequence_weighs_something() -> None:
    assert weight(100, 1024) == 100 + 1024 * 4096
