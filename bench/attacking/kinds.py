# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Every kind of request of the bus, tried with what belongs to somebody else.

`ATTEMPTS` has an entry for each kind that the broker routes. An attempt is made twice, with another's ids
and with ids that nobody has, and the two answers have to be the same.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from loractl.bus.ids import LOCAL_TENANT, TenantId
from loractl.bus.messages import (
    Abort,
    AdapterCreated,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DeleteVersion,
    DescribeModel,
    DigestState,
    Echo,
    ExportWeights,
    Failed,
    ForwardBackward,
    GetHistory,
    GetStatus,
    GetVersions,
    ImportWeights,
    ListAdapters,
    ListTenants,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OpenLane,
    OptimStep,
    Ping,
    PublishAdapter,
    ReadOperation,
    Recall,
    RefuseOperation,
    Sample,
    SaveCheckpoint,
    Shutdown,
    UnloadAdapter,
)

from .scene import ATTACKER, LORA, OWNER, Peer, Things, batch, fresh_name


class Try(NamedTuple):
    """How it is tried, and the request: `it` are the things aimed at, `mine` the attacker's own."""

    how: str
    made: Callable[[Things, Things], Message]


class Tried(NamedTuple):
    """An attempt and what it came to. same: as for what nobody has. leaked: words of the owner's in it."""

    what: str
    how: str
    answer: str
    same: bool
    leaked: tuple[str, ...]


def _at(it: Things) -> dict[str, object]:
    """The other's adapter, lane and next number, all of them guessed right."""
    return {"adapter": it.adapter, "lane": it.lane, "seq": it.next_seq}


def _own(mine: Things) -> dict[str, object]:
    return {"adapter": mine.adapter, "lane": mine.lane, "seq": mine.seq()}


def _mixed(it: Things, mine: Things) -> dict[str, object]:
    """The other's adapter on a lane of one's own."""
    return {"adapter": it.adapter, "lane": mine.lane, "seq": 1}


def _lane(it: Things, mine: Things) -> dict[str, object]:
    """One's own adapter on the other's lane."""
    return {"adapter": mine.adapter, "lane": it.lane, "seq": 9}


_PROMPT = np.arange(1, 5)
_EMPTY = np.zeros(0, np.uint8)

ATTEMPTS: Mapping[type[Message], tuple[Try, ...]] = {
    Ping: (Try("says nothing of anybody", lambda it, mine: Ping()),),
    Echo: (Try("says nothing of anybody", lambda it, mine: Echo(payload=_EMPTY)),),
    DescribeModel: (Try("says nothing of anybody", lambda it, mine: DescribeModel()),),
    GetStatus: (Try("look for others in it", lambda it, mine: GetStatus()),),
    GetVersions: (Try("look for others in it", lambda it, mine: GetVersions()),),
    ListAdapters: (
        Try("look for others in it", lambda it, mine: ListAdapters()),
        Try("another's name", lambda it, mine: ListAdapters(name=it.name)),
    ),
    ListTenants: (Try("everybody's sums", lambda it, mine: ListTenants()),),
    Shutdown: (Try("stop the daemon", lambda it, mine: Shutdown()),),
    GetHistory: (Try("another's adapter", lambda it, mine: GetHistory(adapter=it.adapter, after=0)),),
    ReadOperation: (
        *(
            Try(
                f"operation {n} of another's adapter",
                lambda it, mine, n=n: ReadOperation(adapter=it.adapter, number=n),
            )
            for n in range(1, 8)
        ),
        *(
            Try(
                f"operation {n}, of one's own adapter",
                lambda it, mine, n=n: ReadOperation(adapter=mine.adapter, number=n),
            )
            for n in range(1, 4)
        ),
    ),
    Recall: (Try("another's request", lambda it, mine: Recall(requests=(it.request,))),),
    Abort: (Try("another's request", lambda it, mine: Abort(target=it.request)),),
    CreateAdapter: (
        Try("another's name", lambda it, mine: CreateAdapter(name=it.name, lora=LORA)),
        Try("another's id", lambda it, mine: CreateAdapter(name=fresh_name(), lora=LORA, adapter=it.adapter)),
        Try("another's lane", lambda it, mine: CreateAdapter(name=fresh_name(), lora=LORA, lane=it.lane)),
    ),
    OpenLane: (
        Try("another's adapter", lambda it, mine: OpenLane(adapter=it.adapter)),
        Try("another's lane", lambda it, mine: OpenLane(adapter=mine.adapter, lane=it.lane)),
    ),
    ForwardBackward: (Try("another's adapter and lane", lambda it, mine: batch(it, it.next_seq)),),
    OptimStep: (
        Try("another's adapter and lane", lambda it, mine: OptimStep(**_at(it), learning_rate=9.0)),
        Try(
            "another's adapter, one's own lane",
            lambda it, mine: OptimStep(**_mixed(it, mine), learning_rate=9.0),
        ),
        Try(
            "another's lane, one's own adapter",
            lambda it, mine: OptimStep(**_lane(it, mine), learning_rate=9.0),
        ),
    ),
    SaveCheckpoint: (
        Try(
            "over another's checkpoint",
            lambda it, mine: SaveCheckpoint(**_at(it), name=it.checkpoint, overwrite=True),
        ),
    ),
    LoadCheckpoint: (
        Try(
            "another's into one's own",
            lambda it, mine: LoadCheckpoint(**_own(mine), source=it.adapter, name=it.checkpoint),
        ),
        Try(
            "another's by its name",
            lambda it, mine: LoadCheckpoint(**_own(mine), source=mine.adapter, name=it.checkpoint),
        ),
        Try(
            "into another's",
            lambda it, mine: LoadCheckpoint(**_at(it), source=mine.adapter, name=mine.checkpoint),
        ),
    ),
    LoadVersion: (
        Try(
            "another's into one's own",
            lambda it, mine: LoadVersion(**_own(mine), source=it.adapter, version=it.version),
        ),
        Try(
            "into another's",
            lambda it, mine: LoadVersion(**_at(it), source=mine.adapter, version=mine.version),
        ),
    ),
    ImportWeights: (
        Try(
            "into another's",
            lambda it, mine: ImportWeights(**_at(it), config_json="{}", safetensors=_EMPTY),
        ),
    ),
    ExportWeights: (Try("another's adapter", lambda it, mine: ExportWeights(**_at(it))),),
    DigestState: (Try("another's adapter", lambda it, mine: DigestState(**_at(it))),),
    PublishAdapter: (Try("another's adapter", lambda it, mine: PublishAdapter(**_at(it))),),
    RefuseOperation: (
        Try(
            "use up another's number",
            lambda it, mine: RefuseOperation(**_at(it), code="invalid_data", message="gone"),
        ),
    ),
    DeleteAdapter: (Try("another's adapter", lambda it, mine: DeleteAdapter(adapter=it.adapter)),),
    UnloadAdapter: (Try("another's adapter", lambda it, mine: UnloadAdapter(adapter=it.adapter)),),
    DeleteCheckpoint: (
        Try("another's adapter", lambda it, mine: DeleteCheckpoint(adapter=it.adapter, name=it.checkpoint)),
    ),
    DeleteVersion: (
        Try("another's adapter", lambda it, mine: DeleteVersion(adapter=it.adapter, version=it.version)),
    ),
    Sample: (
        Try(
            "another's adapter",
            lambda it, mine: Sample(adapter=it.adapter, version=None, prompt=_PROMPT, max_tokens=1),
        ),
        Try(
            "another's version",
            lambda it, mine: Sample(adapter=it.adapter, version=it.version, prompt=_PROMPT, max_tokens=1),
        ),
    ),
}

# What the owner's own server may say of another tenant, and nobody over tcp: whose a public thing is.
IN_ANOTHERS_NAME: tuple[Try, ...] = (
    Try(
        "a sample, said to be the owner's",
        lambda it, mine: Sample(adapter=it.adapter, version=None, prompt=_PROMPT, max_tokens=1, owner=OWNER),
    ),
    Try(
        "a checkpoint, said to be the owner's",
        lambda it, mine: LoadCheckpoint(
            **_own(mine), source=it.adapter, name=it.checkpoint, source_owner=OWNER
        ),
    ),
    Try(
        "a version, said to be the owner's",
        lambda it, mine: LoadVersion(**_own(mine), source=it.adapter, version=1, source_owner=OWNER),
    ),
)
OTHER_TENANTS = (OWNER, LOCAL_TENANT)


def attempt(peer: Peer, kind: str, each: Try, it: Things, nobody: Things, mine: Things) -> Tried:
    """Try it twice; `mine` may have used a number of its lane up each time."""
    body = each.made(it, mine)
    answer = _answer(peer, body)
    other = _answer(peer, each.made(nobody, mine))
    same = _without(answer, it) == _without(other, nobody)
    leaked = tuple(word for word in it.words() if word in answer and word not in repr(body))
    return Tried(kind, each.how, _without(answer, it), same, leaked)


def in_name_of(peer: Peer, tenant: TenantId, each: Try, it: Things, mine: Things) -> Tried:
    """Send it as another tenant."""
    answer = _answer(peer, each.made(it, mine), tenant)
    refused = answer.startswith("access_denied")
    return Tried(f"in the name of {tenant}", each.how, _without(answer, it), refused, ())


def _answer(peer: Peer, body: Message, tenant: TenantId = ATTACKER) -> str:
    found = peer.ask(body, tenant)
    if isinstance(found, AdapterCreated):  # so that its name is free for the next attempt
        peer.ask(DeleteAdapter(adapter=found.details.adapter), tenant)
    return f"{found.code}: {found.message}" if isinstance(found, Failed) else f"{found.kind} {found!r}"


_FRESH = ("adapter_created", "lane_opened", "pong", "daemon_status", "echoed")


def _without(answer: str, it: Things) -> str:
    """An answer without the ids that were asked for, and without what is new each time."""
    kind = answer.split(" ", 1)[0]
    if kind in _FRESH:
        return kind
    for word in it.words():
        answer = answer.replace(word, "…")
    return answer
