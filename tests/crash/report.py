"""What a crash test found, and how it tells it."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """chaos: the seed that messages were disturbed by; 0: they were not. lost, doubled, differing, failures: in
    words, one each. asked: everything that was told was asked for again. compared: so many tenants' states were
    compared. logs: what the processes complained of."""

    seed: int
    chaos: int = 0
    kills: int = 0
    acknowledged: int = 0
    tenants: int = 0
    rounds: int = 0
    asked: bool = False
    compared: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    logs: str = ""

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.differing or self.failures)

    @property
    def last_line(self) -> str:
        """After a failure it tells what was not looked at: nothing found is no proof then."""
        said = (
            f"kills {self.kills}, acknowledged {self.acknowledged}, lost {len(self.lost)}, "
            f"doubled {len(self.doubled)}, differing {len(self.differing)}"
        )
        if not self.failures:
            return said
        unasked = "" if self.asked else ", not all asked again"
        uncompared = f", {self.tenants - self.compared} of {self.tenants} tenants not compared"
        return f"{said}{unasked}{uncompared if self.compared < self.tenants else ''}, failed {len(self.failures)}"

    def words(self) -> str:
        said = [f"seed {self.seed}, {self.rounds} rounds of {self.tenants} tenants"]
        if not self.good:
            said += ["--- what was done", *self.timeline, "--- what the processes complained of", self.logs]
            for name in ("lost", "doubled", "differing", "failures"):
                said += [f"{name}: {each}" for each in getattr(self, name)[:20]]
            chaos = f" CHAOS={self.chaos}" if self.chaos else ""
            said.append(f"again with: make crash KILLS={self.kills} SEED={self.seed}{chaos}")
        return "\n".join([*said, self.last_line])
