"""Tokens to text, as they come: a character whose bytes span tokens is never shown in halves."""

from typing import Protocol

from transformers import AutoTokenizer

from ..bus.errors import InvalidConfig

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Enough tokens to hold any character, however few bytes each token stands for.
_KEEP = 8
_CHARACTER_TOKENS = 4
_LONGEST_WINDOW = 4 * _KEEP
# What is still unfinished after so many tokens is no text. Windows are never longer.
_LONGEST_UNFINISHED = 16 * _KEEP


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
    ones before it. What reads U+FFFD at the end waits: its bytes may not be complete. A tokenizer
    with byte fallback reads so every byte of a run in which the last character is not.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Text that became certain with this token."""
        self._window.append(token)
        text = self._decode(self._window)
        patient = len(self._window) <= _LONGEST_UNFINISHED
        certain = len(text.rstrip(_UNFINISHED) if patient else text.removesuffix(_UNFINISHED))
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if len(self._window) > _LONGEST_WINDOW and (self._shown == len(text) or not patient):
            self._forget_beginning(text)
        return piece

    def finish(self) -> str:
        """What was still waiting for its other half."""
        rest = self._decode(self._window)[self._shown :]
        self._shown += len(rest)
        return rest

    def _forget_beginning(self, text: str) -> None:
        """Cut the window where no character lies across; without such a place, wait for a later token."""
        unshown = len(text) - self._shown
        for count in range(_KEEP, _KEEP + _CHARACTER_TOKENS):
            kept = self._decode(self._window[-count:])
            if text.endswith(kept) or len(self._window) > _LONGEST_UNFINISHED:
                # Counted from the end: a tokenizer may read the first token of a window in its own way.
                self._window, self._shown = self._window[-count:], max(0, len(kept) - unshown)
                return

    def _decode(self, window: list[int]) -> str:
        return self._tokenizer.decode(window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
