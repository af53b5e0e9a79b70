"""Tokens to text, as they come: a character whose bytes span tokens is never shown in halves."""

from typing import Protocol

from transformers import AutoTokenizer

from ..bus.errors import InvalidConfig

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Enough tokens to hold any character, however few bytes each token stands for.
_KEEP = 8
_LONGEST_WINDOW = 4 * _KEEP


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...


def load_tokenizer(model_path: str) -> Tokenizer:
    """Load the tokenizer that lies beside the model.

    Raises:
        InvalidConfig: there is none, or it cannot be read.
    """
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{model_path} holds no tokenizer that can be read: {error}") from error
    return tokenizer


class TextStream:
    """The text of one growing sequence.

    Decodes a window at its end again with every token, because how a token reads may depend on the
    ones before it. A last character that is still U+FFFD waits: its bytes may not be complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Text that became certain with this token."""
        self._window.append(token)
        text = self._decode()
        certain = len(text) - text.endswith(_UNFINISHED)
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if len(self._window) > _LONGEST_WINDOW:
            self._forget_beginning(unshown=len(text) - self._shown)
        return piece

    def finish(self) -> str:
        """What was still waiting for its other half."""
        rest = self._decode()[self._shown :]
        self._shown += len(rest)
        return rest

    def _forget_beginning(self, *, unshown: int) -> None:
        # Counted from the end: a tokenizer may read the first token of a window in its own way.
        self._window = self._window[-_KEEP:]
        self._shown = len(self._decode()) - unshown

    def _decode(self) -> str:
        return self._tokenizer.decode(
            self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
