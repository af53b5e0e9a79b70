"""Host memory for training states, in exact sizes, pinned where a CUDA device copies from and to it.

Each piece is its own anonymous mapping, in huge pages where the system gives them: its first write
then costs a page fault for every 2 MiB, not for every 4 KiB, and it goes back to the system when its
last tensor goes. torch's own pinned memory is not used: its allocator rounds every size up to a power
of two (a piece of 9.4 MB takes 16) and keeps what was given back, so no budget could be exact.
"""

import mmap
import weakref

import structlog
import torch
from torch import Tensor

from ..bus.errors import OutOfSlots

log = structlog.get_logger()


def host_piece(numel: int, *, pinned: bool) -> Tensor:
    """A float32 tensor [numel] in memory of its own. Holds zeros.

    Raises:
        OutOfSlots: the system has no memory left.
    """
    try:
        memory = mmap.mmap(-1, numel * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfSlots(
            f"the host has no memory left for {numel * 4} bytes of a training state, though "
            "trainer.host_bytes has; lower trainer.host_bytes"
        ) from error
    memory.madvise(mmap.MADV_HUGEPAGE)
    piece = torch.frombuffer(memory, dtype=torch.float32)
    if pinned:
        _pin(memory, piece)
    return piece


def _pin(memory: mmap.mmap, piece: Tensor) -> None:
    """Register the mapping with CUDA until it goes. The tensor keeps the mapping alive."""
    address = piece.data_ptr()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    failed = int(runtime.cudaHostRegister(address, piece.nbytes, 0))
    if failed:
        # Copies from ordinary memory are as right, only slower.
        log.warning("host_memory.not_pinned", size_bytes=piece.nbytes, cuda_error=failed)
        return
    # Nothing can be under way: whoever holds a copy's event holds its tensors as well.
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
