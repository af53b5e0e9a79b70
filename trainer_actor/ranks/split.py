"""Which replica of the base model computes what of a pass. Pure.

A member is cut by its own lengths alone, never by its neighbours', and its gradients are added up part by part:
so it gets the same bits alone and among others. Where a part runs may depend on everybody; it changes no bit,
as all replicas compute alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Some datums of a member of a pass. number: of the part, in the member's order."""

    member: int
    number: int


def cuts(lengths: Sequence[int], most: int) -> list[int]:
    """Datums of each of at most so many parts: whole ones, as nearly equal in positions as they come."""
    ends = list(accumulate(lengths))
    parts = min(most, len(lengths))
    stops = [0]
    for number in range(1, parts):
        wanted = ends[-1] * number / parts
        # Each part has a datum at least, also those that follow.
        possible = range(stops[-1] + 1, len(lengths) - (parts - number) + 1)
        stops.append(min(possible, key=lambda stop, wanted=wanted: abs(ends[stop - 1] - wanted)))  # type: ignore[misc]
    stops.append(len(lengths))
    return [stop - start for start, stop in pairwise(stops)]


def placed(sizes: Sequence[Sequence[int]], replicas: int) -> list[list[Part]]:
    """What each replica computes, in the members' order; for some there may be nothing. sizes: positions of
    each member's parts, of which there are no more than replicas.

    The longest part is placed first, where the least is; a member's parts have a replica each.
    """
    loads = [0] * replicas
    shares: list[list[Part]] = [[] for _ in range(replicas)]
    parts = [Part(member, number) for member, mine in enumerate(sizes) for number in range(len(mine))]
    taken: list[set[int]] = [set() for _ in sizes]
    for part in sorted(parts, key=lambda part: (-sizes[part.member][part.number], part)):
        free = [replica for replica in range(replicas) if replica not in taken[part.member]]
        chosen = min(free, key=loads.__getitem__)
        loads[chosen] += sizes[part.member][part.number]
        taken[part.member].add(chosen)
        shares[chosen].append(part)
    return [sorted(share) for share in shares]
