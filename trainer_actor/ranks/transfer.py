"""The group that all ranks are in, and tensors from one to another through it.

Only on this machine, over loopback. On CUDA each rank has the device of its number and tensors go by NCCL, which
never ran: there was no machine with two devices.
"""

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ...bus.config import set_process_environment

# Longer than any rank waits for another one that lives; the death of one is noticed otherwise.
_PATIENCE = timedelta(hours=6)


def own_device(device: torch.device, rank: int) -> torch.device:
    """The one that this rank computes on."""
    if device.type != "cuda":
        return device
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def join_group(meeting: Path, rank: int, ranks: int, device: torch.device) -> None:
    """Waits until all are there. meeting: the same new file for all."""
    set_process_environment({"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"})
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(str(meeting), ranks),  # type: ignore[attr-defined]  # public, but not in __all__
        rank=rank,
        world_size=ranks,
        timeout=_PATIENCE,
    )


def begin_to_send(tensors: Sequence[Tensor], rank: int) -> list[dist.Work]:
    """What to wait for, before anything else becomes of the tensors."""
    works = [dist.isend(tensor, rank) for tensor in tensors if tensor.numel()]
    return [work for work in works if work is not None]


def send(tensor: Tensor, rank: int) -> None:
    dist.send(tensor, rank)


def receive(tensors: Sequence[Tensor], rank: int) -> None:
    """In the order in which they are sent."""
    for tensor in tensors:
        if tensor.numel():
            dist.recv(tensor, rank)
