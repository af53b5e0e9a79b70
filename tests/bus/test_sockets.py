"""Sockets: what can be served, and who listens."""

import socket as posix
from pathlib import Path

import pytest
from loractl.bus import sockets
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import InvalidConfig, NotSupported
from loractl.bus.identities import heartbeat_identity, read_identity, work_identity

LIMITS = LimitsConfig()


def test_a_path_that_is_too_long_says_to_choose_a_shorter_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="choose a shorter --state-dir"):
        sockets.checked_address(f"ipc://{tmp_path}/{'x' * 120}/client.sock")


@pytest.mark.parametrize(
    ("address", "reason"), [("tcp://127.0.0.1:5555", "CURVE"), ("udp://127.0.0.1:1", "only ipc")]
)
def test_other_transports_are_refused_by_name(address: str, reason: str) -> None:
    with pytest.raises(NotSupported, match=reason):
        sockets.checked_address(address)


def test_nobody_listens_on_a_missing_or_a_stale_path(state_dir: Path) -> None:
    stale = state_dir / "stale.sock"
    with posix.socket(posix.AF_UNIX) as dead:
        dead.bind(str(stale))

    assert not sockets.someone_listens(f"ipc://{state_dir}/missing.sock")
    assert not sockets.someone_listens(f"ipc://{stale}")


def test_a_bound_router_listens_until_it_is_closed(state_dir: Path) -> None:
    context = sockets.new_context()
    router = sockets.bind_router(context, f"ipc://{state_dir}/a.sock", LIMITS)

    assert sockets.someone_listens(f"ipc://{state_dir}/a.sock")
    sockets.close(context, router)
    assert not sockets.someone_listens(f"ipc://{state_dir}/a.sock")


def test_ten_thousand_messages_wait_without_a_loss(state_dir: Path) -> None:
    context = sockets.new_context()
    router = sockets.bind_router(context, f"ipc://{state_dir}/a.sock", LIMITS)
    dealer = sockets.connect_dealer(context, f"ipc://{state_dir}/a.sock", LIMITS, identity=b"trainer")

    for number in range(10_000):
        dealer.send_multipart([b"%d" % number])
    seen: list[int] = []
    while len(seen) < 10_000 and router.poll(5000):
        seen += [int(bytes(frames[1])) for frames in sockets.receive_waiting(router)]

    assert seen == list(range(10_000))
    sockets.close(context, dealer, router)


def test_a_long_frame_arrives_as_a_view_and_a_short_one_as_bytes(state_dir: Path) -> None:
    context = sockets.new_context()
    router = sockets.bind_router(context, f"ipc://{state_dir}/a.sock", LIMITS)
    dealer = sockets.connect_dealer(context, f"ipc://{state_dir}/a.sock", LIMITS, identity=b"trainer")

    dealer.send_multipart([b"short", bytes(200_000)])
    assert router.poll(5000)
    ((identity, short, long),) = sockets.receive_waiting(router)

    assert (identity, short) == (b"trainer", b"short")
    assert isinstance(long, memoryview)
    assert len(long) == 200_000
    sockets.close(context, dealer, router)


def test_an_actor_is_known_by_either_of_its_two_sockets() -> None:
    both = work_identity("sampler-0"), heartbeat_identity("sampler-0")

    assert len({*both}) == 2
    assert [read_identity(each) for each in both] == ["sampler-0", "sampler-0"]
