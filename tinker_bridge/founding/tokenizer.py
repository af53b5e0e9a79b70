"""The base model's tokenizer, read when it is first needed, and used in one thread of its own.

One thread, because tokenizing takes long enough to hold up the loop, and because a tokenizer must not
be used by two threads at once. Tenants take turns in it, piece by piece: whoever sends many rows waits for
themselves, not others for them.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from ...bus.chat import ChatTokenizer
from ...bus.errors import InvalidConfig
from ...bus.ids import TenantId
from ..base import BaseModel

T = TypeVar("T")

_ANY_LENGTH = 10**30  # what transformers itself writes for "no limit"
# Of one tenant's work, before another's has its turn.
_TURN_S = 0.02


class TokenizerThread:
    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._tokenizer: ChatTokenizer | None = None
        # Weak: a lock is here for as long as somebody has it, or waits for it.
        self._own: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    async def each(self, tenant: TenantId, works: Sequence[Callable[[ChatTokenizer], T]]) -> list[T]:
        """Do pieces of work with the tokenizer, in their order.

        Raises:
            InvalidConfig: the tokenizer cannot be read.
            LoractlError: what a piece raises; those behind it are not done.
        """
        path = await self._base.path()
        own = self._own.get(tenant)
        if own is None:
            own = self._own[tenant] = asyncio.Lock()
        loop = asyncio.get_running_loop()
        done: list[T] = []
        async with own:
            while len(done) < len(works):
                done += await loop.run_in_executor(self._thread, self._turn, path, works, len(done))
        return done

    def _turn(self, path: str, works: Sequence[Callable[[ChatTokenizer], T]], first: int) -> list[T]:
        """The next pieces, for as long as a turn is."""
        tokenizer, done = self._loaded(path), []
        until_s = time.monotonic() + _TURN_S
        for work in works[first:]:
            done.append(work(tokenizer))
            if time.monotonic() >= until_s:
                break
        return done

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, path: str) -> ChatTokenizer:
        """Called in the one thread only, so that it is loaded once."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(path)
        return self._tokenizer


def load_tokenizer(path: str) -> ChatTokenizer:
    """Takes a second or two, for the import of its library. Raises InvalidConfig."""
    try:
        if (Path(path) / "tokenizer.json").is_file():
            # Everything that a tokenizer does is in that file; `AutoTokenizer` would import torch.
            from transformers import PreTrainedTokenizerFast as Tokenizer
        else:
            from transformers import AutoTokenizer as Tokenizer
        tokenizer: ChatTokenizer = Tokenizer.from_pretrained(
            path, local_files_only=True, model_max_length=_ANY_LENGTH
        )
    except ImportError as error:
        raise InvalidConfig("text needs the transformers package: pip install 'loractl[train]'") from error
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read the tokenizer of the base model in {path}: {error}") from error
    return tokenizer
