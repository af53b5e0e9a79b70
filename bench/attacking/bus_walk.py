"""The walk over the bus: all attempts, over the local socket and over tcp, and whether the owner noticed."""

import hashlib
from collections.abc import Iterator

from loractl.bus.client import Client
from loractl.bus.messages import (
    AdapterList,
    ExportWeights,
    GetHistory,
    GetVersions,
    History,
    ListAdapters,
    VersionTable,
    WeightsExported,
)

from .kinds import ATTEMPTS, IN_ANOTHERS_NAME, OTHER_TENANTS, Tried, attempt, in_name_of
from .scene import ATTACKER, OWNER, PATIENCE_S, Peer, Scene, Things, made, nobodys


def walk(scene: Scene) -> Iterator[Tried]:
    """Try everything; the last one says whether what the owner has is as it was."""
    it, mine = made(scene.config, OWNER), made(scene.config, ATTACKER)
    with scene.owner() as owner:
        before = _state(owner, it)
        with scene.near() as near:
            yield from _tried(near, "ipc", it, mine)
        with scene.far() as far:
            yield from _tried(far, "tcp", it, mine)
            for each in IN_ANOTHERS_NAME:
                yield _marked("tcp", attempt(far, "as if it were public", each, it, nobodys(), mine))
            for tenant in OTHER_TENANTS:
                for tries in ATTEMPTS.values():
                    yield _marked("tcp", in_name_of(far, tenant, tries[0], it, mine))
        after = _state(owner, it)
    yield Tried(
        "what the owner has", "compared", "as it was" if after == before else "changed", after == before, ()
    )


def _tried(peer: Peer, way: str, it: Things, mine: Things) -> Iterator[Tried]:
    for kind, tries in ATTEMPTS.items():
        for each in tries:
            yield _marked(way, attempt(peer, kind.kind, each, it, nobodys(), mine))


def _marked(way: str, tried: Tried) -> Tried:
    return tried._replace(what=f"{way} {tried.what}")


def _state(owner: Client, it: Things) -> object:
    """All that an attacker might have changed, and bits of the weights."""
    place = {"adapter": it.adapter, "lane": it.lane}
    weights = owner.request(ExportWeights(**place, seq=it.seq()), timeout_s=PATIENCE_S)
    listed = owner.request(ListAdapters(name=it.name), timeout_s=PATIENCE_S)
    versions = owner.request(GetVersions(), timeout_s=PATIENCE_S)
    history = owner.request(GetHistory(adapter=it.adapter, after=0), timeout_s=PATIENCE_S)
    assert isinstance(weights, WeightsExported)
    assert isinstance(listed, AdapterList)
    assert isinstance(versions, VersionTable)
    assert isinstance(history, History)
    (details,) = listed.adapters
    return (
        hashlib.sha256(weights.safetensors.tobytes()).hexdigest(),
        (details.step, details.version, details.phase),
        versions.records,
        [each.operation for each in history.entries if each.operation != ExportWeights.kind],
    )
