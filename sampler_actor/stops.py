"""Stop strings, found in text that arrives in pieces. Pure.

The outcome does not depend on where the pieces end: the match that ends first wins, and of those
that end together the longest.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """text: may be shown now. hit: a stop string is complete; text ends right before it."""

    text: str
    hit: bool


class StopStrings:
    """Watches one sequence. Holds back only text that may turn out to begin a stop string."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._held = ""

    def feed(self, piece: str) -> Seen:
        text = self._held + piece
        ends = [(text.find(s) + len(s), -len(s)) for s in self._strings if s in text]
        if ends:
            end, negative_length = min(ends)
            self._held = ""
            return Seen(text[: end + negative_length], True)
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return Seen(text[: len(text) - keep], False)

    def finish(self) -> str:
        """The sequence ended for another reason: what was held back is plain text."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = max((len(s) - 1 for s in self._strings), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
