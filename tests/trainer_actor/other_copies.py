"""Copies that are late, and copies that fail: other implementations of `copies.Copies`."""

import math
from collections import deque

import torch
from loractl.bus.errors import StorageFailed
from loractl.trainer_actor.copies import CopiesAtOnce, Mark
from torch import Tensor


class LateCopies:
    """Makes a copy only when somebody waits for it; until then its target holds NaN.

    As on a CUDA stream, copies keep their order, and a source is read when its copy is made: whoever
    does not wait reads NaN, and whoever overwrites a source too early finds it in the copy.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()
        self._made = 0

    def host_piece(self, numel: int) -> Tensor:
        return torch.full((numel,), math.nan)

    def suits(self, piece: Tensor) -> bool:
        return True

    def follow(self) -> None:
        pass

    def copy(self, target: Tensor, source: Tensor) -> None:
        for place, (_, earlier) in reversed(list(enumerate(self._waiting))):
            if earlier.data_ptr() == target.data_ptr():
                self._make(place + 1)  # NaN must not come before what reads this memory first
                break
        target.fill_(math.nan)
        self._waiting.append((target, source))

    def mark(self) -> Mark:
        return _LateMark(self, self._made + len(self._waiting))

    def made(self, count: int) -> bool:
        return self._made >= count

    def make_until(self, count: int) -> None:
        self._make(max(0, count - self._made))

    def _make(self, count: int) -> None:
        for _ in range(count):
            target, source = self._waiting.popleft()
            target.copy_(source)
            self._made += 1


class _LateMark:
    def __init__(self, copies: LateCopies, count: int) -> None:
        self._copies = copies
        self._count = count

    def done(self) -> bool:
        return self._copies.made(self._count)

    def wait(self) -> None:
        self._copies.make_until(self._count)

    def before_compute(self) -> None:
        self._copies.make_until(self._count)


class FailingCopies(CopiesAtOnce):
    """The copy number `fails_at`, counted from 0, is made to its half and then fails."""

    def __init__(self) -> None:
        self.count = 0
        self.fails_at: int | None = None

    def arm(self, fails_at: int | None) -> None:
        self.count, self.fails_at = 0, fails_at

    def copy(self, target: Tensor, source: Tensor) -> None:
        number, self.count = self.count, self.count + 1
        if number == self.fails_at:
            half = target.numel() // 2
            target[:half].copy_(source[:half])
            raise StorageFailed("as if")
        super().copy(target, source)
