"""An engine whose getting on shows: what it holds and does not move, the heartbeat tells of.

Any token, score or load of any request counts, for an engine works at all of them together. How long it
may take to start is not looked at here.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from ..bus.messages import EngineName, VersionRecord
from ..bus.pulse import Strand
from .engine import PLAIN_WISH, Delta, Engine, Job, Scores, ScoreWish, VersionKey


class Watched:
    """Fulfils `engine.Engine` by another one. strand: its own, for one engine after the other."""

    def __init__(self, engine: Engine, strand: Strand) -> None:
        self._engine = engine
        self._strand = strand
        self._under_way = 0
        strand.rest()

    @property
    def name(self) -> EngineName:
        return self._engine.name

    async def start(self) -> None:
        await self._engine.start()

    async def add(self, record: VersionRecord) -> int:
        with self._at(f"the load of {record.adapter} version {record.number}"):
            return await self._engine.add(record)

    async def remove(self, key: VersionKey) -> None:
        with self._at(f"letting go of {key.adapter} version {key.number}"):
            await self._engine.remove(key)

    async def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        with self._at("a sample"):
            async with aclosing(self._engine.sample(job)) as deltas:
                async for delta in deltas:
                    self._strand.turn(self._in_words("a sample"))
                    yield delta

    async def abort(self, job_key: str) -> None:
        await self._engine.abort(job_key)

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        with self._at("a prompt to score"):
            return await self._engine.score(version, prompt, wish)

    async def healthy(self) -> bool:
        return await self._engine.healthy()

    async def close(self) -> None:
        await self._engine.close()

    @contextmanager
    def _at(self, what: str) -> Iterator[None]:
        self._under_way += 1
        # Another one that comes does not make it move.
        if self._under_way == 1:
            self._strand.turn(self._in_words(what))
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way:
                self._strand.turn()
            else:
                self._strand.rest()

    def _in_words(self, what: str) -> str:
        others = self._under_way - 1
        return f"{what} on {self.name}{f' and {others} more' if others else ''}"
