"""How long a client bears with a daemon that is away, and with actors that are. Pure: `now` is any clock's."""

from dataclasses import dataclass

from .asked import Asked
from .errors import ActorRestarting, ActorStopping, LoractlError

# A request that an actor dies of is not tried for ever: each try costs everybody that actor.
_ATTEMPTS = 3


@dataclass(slots=True)
class Patience:
    """for_s: with each absence; 0: none at all."""

    for_s: float
    _away_since: float | None = None

    def __bool__(self) -> bool:
        return self.for_s > 0

    def ends(self, now: float) -> bool:
        """The daemon is away. Whether it has been for too long."""
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since >= self.for_s

    def heard(self) -> bool:
        """The daemon says something. Whether it was away."""
        was_away, self._away_since = self._away_since is not None, None
        return was_away and bool(self)

    def bears(self, asked: Asked, error: LoractlError, now: float) -> bool:
        """Whether a request that was refused is to be tried again: nothing of it ran, and it may soon."""
        if not self or asked.delivered:
            return False
        match error:
            case ActorStopping():
                if asked.refused_at is None:
                    asked.refused_at = now
                return now - asked.refused_at < self.for_s
            case ActorRestarting():
                asked.losses += 1
                return asked.losses < _ATTEMPTS
            case _:
                return False
