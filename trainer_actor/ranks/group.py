"""Rank 0's hold of the other ranks: starts their processes, and ends them."""

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import structlog
import torch

from ...bus.config import Config
from .channel import Channel
from .frames import Begin, FromRank, Here, Ready, ToRank
from .peer import Peer
from .transfer import join_group, own_device

log = structlog.get_logger()


class Group:
    """peers: rank 1, 2 and so on."""

    def __init__(self, peers: Sequence[Peer], meeting: Path) -> None:
        self.peers = tuple(peers)
        self._meeting = meeting

    @classmethod
    def start(cls, config: Config, device: torch.device) -> Self:
        """Start the other ranks and join a group with them. They load the base model from here on.

        Raises:
            StartFailed: one of them cannot.
        """
        meeting = Path(tempfile.mkdtemp(prefix="loractl-ranks-"))
        group = cls([_started(rank, device) for rank in range(1, config.trainer.ranks)], meeting)
        try:
            for peer in group.peers:
                peer.tell(Begin(peer.rank, config.to_json(), str(meeting / "group")))
            for peer in group.peers:
                peer.told(Here)
                peer.watch()
            join_group(meeting / "group", 0, config.trainer.ranks, own_device(device, 0))
        except BaseException:
            group.close()
            raise
        return group

    def wait_until_ready(self) -> None:
        """Raises StartFailed: one of them cannot load the base model."""
        for peer in self.peers:
            peer.told(Ready)
            log.info("rank.ready", rank=peer.rank)
        self._forget_meeting()

    def close(self) -> None:
        """End them. Closing what is closed is fine."""
        for peer in self.peers:
            peer.leave()
        for peer in self.peers:
            peer.wait_until_gone()
        self._forget_meeting()

    def _forget_meeting(self) -> None:
        shutil.rmtree(self._meeting, ignore_errors=True)


def _started(rank: int, device: torch.device) -> Peer:
    """In the trainer's process group, so that whoever ends that ends it, too."""
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "loractl.trainer_actor.ranks", "--channel", str(its.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
        )
    channel: Channel[ToRank, FromRank] = Channel(ours, msgspec.msgpack.Decoder(FromRank))
    return Peer(rank, channel, process, own_device(device, 0))
