"""One sampled sequence as it grows: tokens, their logprobs, text, and how it ended."""

from array import array
from dataclasses import dataclass

from ..bus.messages import StopReason
from .engine import Delta
from .stops import StopStrings
from .text import TextStream, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What a delta added. text lags behind the tokens while it may begin a stop string."""

    tokens: tuple[int, ...]
    text: str


class GrowingSequence:
    """reason is None while it grows. After a stop string it has ended, whatever the engine says.

    choice_tokens, choice_logprobs: the likeliest at each token end to end, if the job asked for them.
    cached: tokens of the prompt that the engine did not have to compute; None before it said so.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: tuple[str, ...]) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        # Packed: there may be a thousand for each token.
        self.choice_tokens = array("q")
        self.choice_logprobs = array("f")
        self.cached: int | None = None
        self.text = ""
        self.reason: StopReason | None = None
        self._decoder = TextStream(tokenizer)
        self._stops = StopStrings(stop_strings)

    def take(self, delta: Delta) -> Piece:
        """Add a delta. A stop string ends the sequence with the token that completes it."""
        first, shown = len(self.tokens), len(self.text)
        if delta.tokens:
            self.cached = delta.cached
        for token, logprob in zip(delta.tokens, delta.logprobs, strict=True):
            self.tokens.append(token)
            self.logprobs.append(logprob)
            if self._see(self._decoder.push(token)):
                break
        for choices in delta.choices[: len(self.tokens) - first]:
            self.choice_tokens.extend(choices.tokens)
            self.choice_logprobs.extend(choices.logprobs)
        if self.reason is None and delta.finished is not None:
            self._end(delta.finished)
        return Piece(tuple(self.tokens[first:]), self.text[shown:])

    def end(self, reason: StopReason) -> None:
        """End it here, with what there is, unless it has ended."""
        if self.reason is None:
            self._end(reason)

    def _end(self, reason: StopReason) -> None:
        if not self._see(self._decoder.finish()):
            self.text += self._stops.finish()
            self.reason = reason

    def _see(self, text: str) -> bool:
        seen = self._stops.feed(text)
        self.text += seen.text
        if seen.hit:
            self.reason = "stop"
        return seen.hit
