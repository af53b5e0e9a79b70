"""What is fuzzed, as data: how to open it, how many of all cases it gets, and what a case may cost."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from loractl.tests.fuzz.source import Source

MIB = 2**20

# Plays one case; whatever it raises is a fault.
Play = Callable[[Source], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """share: of all cases, in thousandths. open: makes what cases play on, in an empty directory.

    episode: so many cases share what was opened and may build on each other; 0: each stands for itself.
    limit_s: processor time of one case; patience_s: after so long it hangs. grows_bytes: memory that may
    stay in use after the warm-up; peak_bytes: that may be in use at any moment, above what there was at first.
    """

    name: str
    share: int
    open: Callable[[Path], AbstractContextManager[Play]]
    episode: int = 0
    limit_s: float = 5.0
    patience_s: float = 60.0
    grows_bytes: int = 32 * MIB
    peak_bytes: int = 512 * MIB


@dataclass(frozen=True, slots=True)
class Fault:
    """A case that went wrong, and how."""

    subject: str
    seed: int
    case: int
    what: str

    @property
    def again(self) -> str:
        return f"make fuzz SEED={self.seed} KIND={self.subject} CASE={self.case}"


def source_of(subject: Subject, seed: int, case: int) -> Source:
    """The choices of a case depend on its name alone, so that it can be played again by itself."""
    return Source(f"{seed} {subject.name} {case}")
