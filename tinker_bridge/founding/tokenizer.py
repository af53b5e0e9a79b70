"""The base model's tokenizer, read when it is first needed, and used in one thread of its own.

One thread, because tokenizing takes long enough to hold up the loop, and because a tokenizer must not
be used by two threads at once.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ...bus.chat import ChatTokenizer
from ...bus.errors import InvalidConfig
from ..base import BaseModel

T = TypeVar("T")

_ANY_LENGTH = 10**30  # what transformers itself writes for "no limit"


class TokenizerThread:
    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._tokenizer: ChatTokenizer | None = None

    async def run(self, work: Callable[[ChatTokenizer], T]) -> T:
        """Do some work with the tokenizer.

        Raises:
            InvalidConfig: the tokenizer cannot be read.
            LoractlError: what work raises.
        """
        path = await self._base.path()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: work(self._loaded(path))
        )

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
