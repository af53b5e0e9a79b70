"""Clients in processes of their own, so that they do not wait behind one another.

They have what the service leaves of the machine, for users' clients are on other machines and take nothing of it.
"""

import asyncio
import gc
import multiprocessing
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .api import Api, connected

Told = Callable[[Any], None]

_NICENESS = 15


class Elsewhere:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def heard(self) -> Any:
        """What the process says next. Raises EOFError: it ended without a word."""
        return await asyncio.to_thread(self._pipe.recv)


@contextmanager
def elsewhere(
    work: Callable[..., Awaitable[None]], url: str, key: str, *arguments: Any
) -> Iterator[Elsewhere]:
    """Run `work(api, told, *arguments)` in a process; told says things to whoever started it."""
    ours, theirs = multiprocessing.Pipe()
    start = multiprocessing.get_context("spawn").Process
    process = start(target=_run, args=(theirs, work, url, key, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Elsewhere(ours)
    finally:
        process.terminate()
        process.join()


def _give_way() -> None:
    os.setsid()
    os.nice(_NICENESS)
    # Linux may share the machine out among sessions first, and then niceness is for those of one session only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


def _run(
    pipe: Connection,
    work: Callable[..., Awaitable[None]],
    url: str,
    key: str,
    arguments: tuple[Any, ...],
) -> None:
    _give_way()
    gc.disable()  # whoever makes thousands of futures in a short life spends most of it on looking for garbage
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def whole() -> None:
        async with connected(url, key) as http:
            await work(Api(http), pipe.send, *arguments)

    asyncio.run(whole())
