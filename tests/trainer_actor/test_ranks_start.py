"""What rank 0 hears of another rank as it starts and as it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from loractl.bus.config import subprocess_environment
from loractl.bus.errors import StartFailed
from loractl.trainer_actor.ranks.channel import Channel
from loractl.trainer_actor.ranks.frames import Begin, Failed, FromRank, Here, ToRank
from loractl.trainer_actor.ranks.peer import Peer

WAIT_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
# A process that watches another one, as rank 0 does: it says the other's number.
WATCHING = """
import socket, subprocess, sys, time
import msgspec
from loractl.trainer_actor.ranks.channel import Channel
from loractl.trainer_actor.ranks.frames import FromRank
from loractl.trainer_actor.ranks.lost import end_trainer

ours, its = socket.socketpair()
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
with its:
    process = subprocess.Popen(sleeper, pass_fds=[its.fileno()], stdout=subprocess.DEVNULL)
Channel(ours, msgspec.msgpack.Decoder(FromRank)).watch(lambda: end_trainer(1, process))
print(process.pid, flush=True)
time.sleep(600)
"""
Theirs = Channel[FromRank, ToRank]


@pytest.fixture
def ends() -> Iterator[tuple[Peer, Theirs]]:
    """Rank 0's end and the other's, whose process has nothing to say."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", ""])
    peer = Peer(3, Channel(ours, msgspec.msgpack.Decoder(FromRank)), process, torch.device("cpu"))
    with ours, theirs:
        yield peer, Channel(theirs, msgspec.msgpack.Decoder(ToRank))
    process.wait()


def test_a_rank_that_cannot_start_says_why(ends: tuple[Peer, Theirs]) -> None:
    peer, theirs = ends
    theirs.send(Failed("it does not fit on cuda:3"))

    with pytest.raises(StartFailed, match="rank 3 of the trainer cannot start: it does not fit on cuda:3"):
        peer.told(Here)


def test_a_rank_hears_at_once_that_rank_0_lets_it_go(ends: tuple[Peer, Theirs]) -> None:
    peer, theirs = ends
    heard = threading.Event()
    theirs.watch(heard.set)
    peer.tell(Begin(3, "{}", "/nowhere"))
    assert isinstance(theirs.receive(), Begin)
    assert not heard.is_set()

    peer.leave()

    assert heard.wait(WAIT_S)
    with pytest.raises(EOFError):
        theirs.receive()


@pytest.mark.parametrize(
    ("ended_by", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 1)], ids=["killed", "ended"]
)
def test_a_trainer_ends_as_its_rank_did(ended_by: signal.Signals, code: int) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", WATCHING],
        env=subprocess_environment({"PYTHONPATH": str(ROOT / ".pkg")}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    with trainer.stdout as said:
        os.kill(int(said.readline()), ended_by)
        told = said.read()

    assert trainer.wait(WAIT_S) == code
    assert "rank.lost" in told
