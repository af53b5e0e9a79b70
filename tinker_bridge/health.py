"""Whether the service is whole, from what the daemon says about itself. Pure."""

from dataclasses import dataclass

from ..bus.messages import DaemonStatus


@dataclass(frozen=True, slots=True)
class Health:
    """missing: what keeps requests from being served, in words; nothing when all is well.
    given_up: there will be no trainer before the daemon is started again."""

    missing: tuple[str, ...] = ()
    given_up: bool = False

    @property
    def ok(self) -> bool:
        return not self.missing


def health_of(status: DaemonStatus) -> Health:
    """Training needs the trainer and room for the journal; a sampler that restarts holds up samples only, and they wait."""
    trainers = [actor for actor in status.actors if actor.role == "trainer"]
    if not trainers:
        return Health(("the daemon has no trainer",))
    # Without details: anybody may ask, and they may name files.
    missing = [f"{each.actor} is {each.phase}" for each in trainers if each.phase != "ready"]
    missing += [f"{each.actor} is silent for {each.silent_s:.0f} s" for each in trainers if each.silent_s]
    full = ["the disk is full"] if status.disk_is_full else []
    return Health((*missing, *full), given_up=all(each.phase == "failed" for each in trainers))
