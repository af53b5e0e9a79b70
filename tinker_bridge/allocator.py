"""What the C library does with memory that is freed: large blocks go back to the system at once.

Left alone, glibc takes the size of blocks that were freed for what is wanted again, up to 32 MiB, and then
keeps as much as 64 MiB at the top of every thread's own heap, for good. The threads in which bodies are
decompressed have one each.
"""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# What is larger has pages of its own, and a heap keeps no more than this at its top. Set by hand, they stay.
_LARGE_BYTES = 2**20


def give_back_large_blocks() -> None:
    """For the whole process, from now on. Where the C library is not glibc: nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
