"""Copies between a device and host memory, and who waits for them.

On CUDA they run on a stream of their own, behind whatever the device computes; on a CPU they are
done at once, and the same waiting costs nothing. One stream, so copies keep their order: a buffer that
one copy reads and a later one overwrites is safe without further care.
"""

from typing import Protocol

import torch
from torch import Tensor

from .host_memory import host_piece


class Mark(Protocol):
    """A point behind some copies. Their tensors must be kept until `done`, however long that takes."""

    def done(self) -> bool: ...

    def wait(self) -> None:
        """Before the host reads what they write, or overwrites or lets go of what they use."""

    def before_compute(self) -> None:
        """Before the device computes with what they write. The host does not wait."""


class Copies(Protocol):
    def host_piece(self, numel: int) -> Tensor:
        """Host memory that suits these copies: float32 [numel]. Raises OutOfSlots when there is none."""

    def suits(self, piece: Tensor) -> bool:
        """Whether copies to this host memory run as they should; other memory is right too, only slower."""

    def follow(self) -> None:
        """What is copied from here on comes after everything that the device was given to compute so far."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Neither may be used by others before the next `mark` is passed."""

    def mark(self) -> Mark: ...


class _Done:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def before_compute(self) -> None:
        pass


DONE: Mark = _Done()


class CopiesAtOnce:
    """For a device that is the host itself."""

    def host_piece(self, numel: int) -> Tensor:
        return host_piece(numel, pinned=False)

    def suits(self, piece: Tensor) -> bool:  # noqa: ARG002
        return True

    def follow(self) -> None:
        pass

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Mark:
        return DONE


class _Event:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()

    def before_compute(self) -> None:
        torch.cuda.current_stream().wait_event(self._event)


class StreamCopies:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_piece(self, numel: int) -> Tensor:
        return host_piece(numel, pinned=True)

    def suits(self, piece: Tensor) -> bool:
        return piece.is_pinned()

    def follow(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        return _Event(self._stream)


def copies_for(device: torch.device) -> Copies:
    return StreamCopies(device) if device.type == "cuda" else CopiesAtOnce()


def device_budget(device: torch.device) -> int:
    """Bytes for rows where settings leave them to us: of the rest of the device a pass needs much."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return 2 * 2**30
