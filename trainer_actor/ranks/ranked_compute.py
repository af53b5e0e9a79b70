"""A pass on all ranks: shared out, computed at one time, and put together on rank 0.

Each part of a member gathers its gradients in a row of its own, and these join the member's in the order of the
parts, linear by linear. The first part of a member that has none yet may gather in place: the same bits,
and a copy less.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from ..compute import OneProcess
from ..members import Member
from ..model_pass import RowsResult
from ..row_memory import RowMemory
from ..row_views import GradientRow
from .group import Group
from .parts import joined, parts_of
from .peer import Peer
from .split import Part, cuts, placed

# Let what a part gathered join that row.
_Join = Callable[[GradientRow], None]


class RankedCompute:
    """memory: of rows on this rank. tensor_parallel: neighbouring ranks that hold one replica of the model."""

    def __init__(self, own: OneProcess, group: Group, memory: RowMemory, tensor_parallel: int) -> None:
        self._own = own
        self._peers = group.peers
        self._memory = memory
        self._tensor_parallel = tensor_parallel
        self._replicas = (1 + len(group.peers)) // tensor_parallel

    @property
    def neighbours_matter(self) -> bool:
        return self._own.neighbours_matter

    def tell_progress(self, alive: Callable[[], None]) -> None:
        self._own.tell_progress(alive)
        for peer in self._peers:
            peer.alive = alive

    def run(self, members: Sequence[Member]) -> list[RowsResult]:
        parts = [self._cut(member) for member in members]
        shares = placed([[len(each.rows.tokens_t) for each in mine] for mine in parts], self._replicas)
        with ExitStack() as stack:
            peers = [peer for peer in self._peers if shares[self._replica(peer)]]
            for peer in peers:
                stack.callback(peer.over)
            self._send(peers, [[parts[each.member][each.number] for each in share] for share in shares])
            done = _Done()
            own = [self._gathering(parts[each.member][each.number], each, stack) for each in shares[0]]
            if own:
                done.take(shares[0], self._run_own(own), map(_join_of, own))
            for peer in peers:
                if peer.rank % self._tensor_parallel == 0:
                    self._take(done, shares[self._replica(peer)], peer)
            return [
                self._put_together(member, done.of(place, len(parts[place])))
                for place, member in enumerate(members)
            ]

    def _cut(self, member: Member) -> list[Member]:
        return parts_of(member, cuts(member.rows.lengths, self._replicas), self._own.head.chunk)

    def _replica(self, peer: Peer) -> int:
        return peer.rank // self._tensor_parallel

    def _send(self, peers: Sequence[Peer], members: Sequence[Sequence[Member]]) -> None:
        """To every rank of a replica all that it computes."""
        for peer in peers:
            peer.offer(members[self._replica(peer)])
        answers = [peer.has_room() for peer in peers]
        if not all(answers):
            raise torch.OutOfMemoryError("another rank has no room for its share of a pass")
        for peer in peers:
            peer.go()

    def _gathering(self, member: Member, part: Part, stack: ExitStack) -> Member:
        """With the row that this part gathers in."""
        if member.gradients is None or (part.number == 0 and not member.gradients.written):
            return member
        views = self._memory.take(member.gradients.views.layout, torch.float32)
        stack.callback(self._memory.give, views)
        return replace(member, gradients=GradientRow(views))

    def _run_own(self, members: Sequence[Member]) -> list[RowsResult]:
        try:
            return self._own.run(members)
        except RuntimeError as error:
            if self._tensor_parallel > 1:
                # Those who share its model stand in the midst of a sum: nothing but a new start helps.
                self._peers[0].lost(f"rank 0 gave up a pass: {error}")
            raise

    def _take(self, done: "_Done", share: Sequence[Part], peer: Peer) -> None:
        told = peer.done()
        joins = (self._join_from(peer, place, each.written) for place, each in enumerate(told.members))
        done.take(share, peer.results(told), joins)

    def _join_from(self, peer: Peer, place: int, written: Sequence[int]) -> _Join:
        def join(gradients: GradientRow) -> None:
            if not written:
                return
            views = self._memory.take(gradients.views.layout, torch.float32)
            try:
                peer.fetch(place, views.row_N)
                gradients.join(views.row_N, written)
            finally:
                self._memory.give(views)

        return join

    def _put_together(self, member: Member, parts: "Sequence[tuple[RowsResult, _Join]]") -> RowsResult:
        result = joined([result for result, _ in parts])
        if member.gradients is not None and result.finite:
            for _, join in parts:
                join(member.gradients)
        return result


class _Done:
    """What became of each part."""

    def __init__(self) -> None:
        self._found: dict[Part, tuple[RowsResult, _Join]] = {}

    def take(self, share: Sequence[Part], results: Sequence[RowsResult], joins: Iterable[_Join]) -> None:
        for part, result, join in zip(share, results, joins, strict=True):
            self._found[part] = (result, join)

    def of(self, member: int, parts: int) -> list[tuple[RowsResult, _Join]]:
        return [self._found[Part(member, number)] for number in range(parts)]


def _join_of(own: Member) -> _Join:
    """Of a part that was computed here."""

    def join(gradients: GradientRow) -> None:
        if own.gradients is not None and own.gradients is not gradients:
            gradients.join(own.gradients.views.row_N, own.gradients.written)

    return join
