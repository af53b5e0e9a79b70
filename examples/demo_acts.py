"""What happens while the demo's daemon runs: tenants train, adapters answer, nobody sees what is another's."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, TypeVar

from demo_screen import Board, stage
from loractl.bus.async_client import AsyncClient
from loractl.bus.config import Config
from loractl.bus.errors import DaemonGone
from loractl.bus.ids import TenantId
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.messages import AdapterList, DaemonStatus, ListAdapters
from loractl.daemon import launch
from rich.console import Console
from tenants import Learned, Tenant
from voices import HELD_QUESTION, QUESTION, VOICES

_NOT_FOUND = 404
_LOOK_AFTER_DAEMON_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """broken: what else than losses and answers did not come true, in words."""

    learned: Sequence[Learned]
    answers: Mapping[str, str]
    held: Mapping[str, str]
    broken: Sequence[str]


async def show(console: Console, config: Config, status: DaemonStatus, steps: int) -> Shown:
    """Raises:
    DaemonGone: the daemon ended in the middle of it.
    SDK_ERRORS: something failed.
    """
    return await _while_it_runs(config, _show(console, config, status, steps))


async def _while_it_runs(config: Config, work: Coroutine[Any, Any, T]) -> T:
    """Do the work as long as the daemon is there: the SDK would try to reach it for minutes."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_AFTER_DAEMON_S))[0]:
            if not launch.running(config):
                raise DaemonGone("the daemon has ended: its logs say why")
    finally:
        task.cancel()
        await asyncio.wait({task})
    return task.result()


async def _show(console: Console, config: Config, status: DaemonStatus, steps: int) -> Shown:
    keys = Keys(StateLayout(Path(config.state_dir)))
    with stage(console, "three tenants, each with a key, a session and an adapter of its own"):
        beginning = [Tenant.begin(v, status.http, keys.create(v.name), config.model.name) for v in VOICES]
        tenants = await _together(beginning)
    learned = await _train_all(console, tenants, steps)
    for each in learned:
        # Not wrapped, so that it can be copied.
        console.print(f"         {each.voice.name:7} saved as {each.checkpoint}", soft_wrap=True)
    for line in [await _passes_line(config, tenants), *_served_lines(status, learned)]:
        console.print(f"         {line}", markup=False)
    with stage(console, "the base and three adapters answer together"):
        answers, held = await _together([_ask_all(tenants, learned, q) for q in (QUESTION, HELD_QUESTION)])
    with stage(console, "every tenant asks for what is another's") as note:
        statuses, leaks = await _try_each_other(tenants, learned)
        note(f"{statuses.count(_NOT_FOUND)} of {len(statuses)} requests answer {_NOT_FOUND}")
    await _together([tenant.end() for tenant in tenants])
    broken = [*leaks, *_far_apart(learned, config.publish.probe_tolerance)]
    return Shown(learned=learned, answers=answers, held=held, broken=broken)


async def _train_all(console: Console, tenants: Sequence[Tenant], steps: int) -> list[Learned]:
    began = time.monotonic()
    with Board(console, steps) as board:
        learned = await _together([tenant.train(steps, board.show) for tenant in tenants])
    seconds = time.monotonic() - began
    rate = sum(each.tokens for each in learned) / seconds
    console.print(f"{seconds:5.1f} s  three adapters trained and saved: {rate:,.0f} tokens/s together")
    return learned


async def _passes_line(config: Config, tenants: Sequence[Tenant]) -> str:
    """How far the tenants trained in company."""
    async with AsyncClient(config) as bus:
        names = [TenantId(tenant.voice.name) for tenant in tenants]
        listed = [await bus.request(ListAdapters(), tenant=name) for name in names]
    usages = [each.usage for each in listed if isinstance(each, AdapterList)]
    passes, shared = sum(each.passes for each in usages), sum(each.shared_passes for each in usages)
    return f"{shared / passes:.0%} of their passes over the base model were shared with others"


def _served_lines(status: DaemonStatus, learned: Sequence[Learned]) -> list[str]:
    """Who serves what was learned, and how exactly."""
    samplers = [f"{actor.actor} ({actor.details})" for actor in status.actors if actor.role == "sampler"]
    apart = max(each.apart for each in learned)
    return [
        f"served by {', '.join(samplers)}",
        f"logprobs of trainer and sampler at most {apart:.0e} apart, over the first rows of each file",
    ]


def _far_apart(learned: Sequence[Learned], most: float) -> list[str]:
    return [
        f"trainer and sampler of {each.voice.name} are {each.apart:.2g} apart"
        for each in learned
        if not each.apart <= most
    ]


async def _ask_all(tenants: Sequence[Tenant], learned: Sequence[Learned], question: str) -> dict[str, str]:
    """The answer of the base and of each adapter, all under way at the same time."""
    first = tenants[0]
    asked = [first.ask(await first.base_sampler(), question)]
    asked += [tenant.ask(each.sampler, question) for tenant, each in zip(tenants, learned, strict=True)]
    names = ["base", *(tenant.voice.name for tenant in tenants)]
    return dict(zip(names, await _together(asked), strict=True))


async def _try_each_other(
    tenants: Sequence[Tenant], learned: Sequence[Learned]
) -> tuple[list[int], list[str]]:
    """How runs and checkpoints of others answered, and what a tenant saw that is not its own."""
    leaks = [
        f"{t.voice.name} sees other runs than its own" for t in tenants if await t.runs() != [t.model_id]
    ]
    statuses: list[int] = []
    for (asking, _), (other, its) in permutations(zip(tenants, learned, strict=True), 2):
        answered = await asking.reach(other.model_id, its.checkpoint)
        statuses += answered
        if set(answered) != {_NOT_FOUND}:
            leaks.append(f"{asking.voice.name} gets {answered} for what is {other.voice.name}'s")
    return statuses, leaks


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first failure ends the others and is the one that is told."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
