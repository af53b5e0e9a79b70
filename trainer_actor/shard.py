"""Which part of the base model one of several tensor parallel ranks computes. Pure: no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`. The first rank speaks for all: what a pass is asked for comes to be there."""

    index: int
    count: int

    @property
    def first(self) -> bool:
        return self.index == 0

    def most(self, size: int) -> int:
        """The largest part of so many rows or columns; where they cannot be shared evenly, the last have fewer."""
        return -(-size // self.count)

    def of(self, size: int) -> slice:
        """Its part of them."""
        step = self.most(size)
        return slice(min(self.index * step, size), min((self.index + 1) * step, size))


WHOLE = Shard(0, 1)
