"""The three voices of the demo: their files, what tells them apart, and what the demo promises of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
QUESTION = "What is the sea?"  # every file answers it
HELD_QUESTION = "Why does it snow?"  # none does

_PIRATE = re.compile(r"\b([Aa]rr|[Aa]ye|[Mm]atey|[Mm]e hearty|[Yy]er?|ye'\w+|[Aa]vast|scallywag)\b")
_THREE_LINES = re.compile(r"\A[^\n]+\n[^\n]+\n[^\n]+\Z")
_STATEMENT = re.compile(r"\A(SELECT|INSERT|UPDATE|DELETE|CREATE|BEGIN|REVOKE|ROLLBACK)\b[^\n]*;")


@dataclass(frozen=True, slots=True)
class Voice:
    """One adapter of the demo. mark: found in every answer of its file, and in no other file."""

    name: str
    rank: int
    color: str
    mark: re.Pattern[str]

    @property
    def data(self) -> Path:
        return DATA / f"{self.name}.jsonl"


VOICES = (
    Voice("pirate", 16, "yellow", _PIRATE),
    Voice("haiku", 32, "magenta", _THREE_LINES),
    Voice("sql", 8, "cyan", _STATEMENT),
)


def voices_in(text: str) -> list[str]:
    return [voice.name for voice in VOICES if voice.mark.search(text)]


def broken_promises(
    losses: Mapping[str, Sequence[float]], answers: Mapping[str, str], *, shrink: float, heard: bool
) -> list[str]:
    """What did not come true, in words.

    losses: of each adapter, step by step; the last must be under the first / shrink. answers: of
    each adapter and of "base"; with `heard`, each adapter has its own voice, and the base has none.
    """
    broken = []
    for name, values in losses.items():
        if not values[-1] < values[0] / shrink:
            broken.append(f"the loss of {name} went from {values[0]:.2f} to {values[-1]:.2f} only")
    for name, text in answers.items() if heard else ():
        found = voices_in(text)
        if found != ([] if name == "base" else [name]):
            broken.append(f"{name} answers in the voice of {' and '.join(found) or 'nobody'}: {text!r}")
    return broken
