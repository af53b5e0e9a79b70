"""What passes and copies cost on this machine: measured at start, used to weigh one against the other. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """pass_ms: of a pass beyond its positions. token_ms: of each position. copy_bytes_per_ms: between
    host and device, one way."""

    pass_ms: float
    token_ms: float
    copy_bytes_per_ms: float

    def pass_of(self, tokens: int) -> float:
        """Milliseconds of a pass over so many positions."""
        return self.pass_ms + tokens * self.token_ms

    def copy_of(self, size_bytes: int) -> float:
        """Milliseconds of a copy of so many bytes."""
        return size_bytes / self.copy_bytes_per_ms
