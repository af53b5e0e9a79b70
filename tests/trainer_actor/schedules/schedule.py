"""A crowd as data: whose operations are sent when, and what else happens to the trainer meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loractl.tests.trainer_actor.schedules.lives import Choose, Life

MOST_TRACKS = 8
TENANTS = ("ann", "bob", "cid")


@dataclass(frozen=True, slots=True)
class Track:
    """The adapters that have one name, one after the other. rude: all but the last are deleted while
    operations of theirs wait, and not when all is done."""

    tenant: str
    name: str
    lives: tuple[Life, ...]
    rude: bool = False


@dataclass(frozen=True, slots=True)
class Burst:
    """A track's next `count` operations are sent, without waiting for answers."""

    track: int
    count: int
    manner: Literal["in order", "backwards", "twice"] = "in order"


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent before a track has all its answers."""

    track: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The trainer is told to stop, whatever waits; another one takes over."""


Move = Burst | Pause | Restart


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is left after the moves is sent in bursts of two, a track at a time."""

    tracks: tuple[Track, ...]
    moves: tuple[Move, ...]


def draw_schedule(choose: Choose, lives: Sequence[Life]) -> Schedule:
    """lives: simple ones first. The size is skewed to few tracks, so that crowds stay affordable."""
    count = (2, 2, 3, 3, 4, 4, 5, MOST_TRACKS)[choose(8)]
    tracks = tuple(_draw_track(choose, lives, number) for number in range(count))
    moves = tuple(_draw_move(choose, count) for _ in range(choose(12)))
    return Schedule(tracks, moves)


def _draw_track(choose: Choose, lives: Sequence[Life], number: int) -> Track:
    again = choose(6) == 5
    return Track(
        tenant=TENANTS[choose(len(TENANTS))],
        name=f"track-{number}",
        lives=tuple(lives[choose(len(lives))] for _ in range(1 + again)),
        rude=again and bool(choose(2)),
    )


def _draw_move(choose: Choose, tracks: int) -> Move:
    match choose(24):
        case 23:
            return Restart()
        case 20 | 21 | 22:
            return Pause(choose(tracks))
        case _:
            manner: tuple[Literal["in order", "backwards", "twice"], ...]
            manner = ("in order", "in order", "in order", "backwards", "twice")
            return Burst(choose(tracks), 1 + choose(4), manner[choose(5)])
