"""What clients were told is asked for once more; what two lives of the same scripts came to is compared."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from loractl.bus.client import Client
from loractl.bus.ids import TenantId
from loractl.bus.messages import AdapterList, ListAdapters
from loractl.tests.crash.crashed_daemon import CrashedDaemon
from loractl.tests.crash.recording import POLL, Recording, Told, is_final
from loractl.tests.crash.report import Report
from loractl.tests.crash.tenant_script import LAST, TenantScript

# What the daemon itself finds broken, by the event in its log.
_BROKEN = re.compile(r'"event": ?"(chaos\.promise_broken|replay\.differs)"')
_AT_A_TIME = 16


@dataclass
class Life:
    """One run of all scripts, on a daemon of its own. digests: of every adapter's state, by tenant, as far as
    its script came to its end."""

    scripts: list[TenantScript] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def ask_again(proxy: Recording, report: Report) -> None:
    """Every future that was told has one outcome, the one that was read first; what was made is there."""
    record = proxy.record
    report.doubled += record.twice
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        futures = [*record.told.items()]
        asked = [pool.submit(_asked_again, proxy, future, told) for future, told in futures]
        looked = {path: pool.submit(_looked, proxy, path, key) for path, key in [*record.made.items()]}
    try:
        for (future, told), answer in zip(futures, asked, strict=True):
            _judge(report, future, told, answer.result())
        for path, found in looked.items():
            if found.result().status_code != 200:
                report.lost.append(f"{path}: {found.result().status_code} {found.result().text[:200]}")
        report.asked = True
    except httpx.TransportError as error:
        report.failures.append(f"nobody answers any more: {error}")


def _judge(report: Report, future: str, told: Told, answer: httpx.Response) -> None:
    if not is_final(answer):
        report.lost.append(f"{told.path} {future}: {answer.status_code} {answer.text[:200]}")
    elif told.changed or (told.outcome is not None and told.outcome != answer.content):
        report.doubled.append(f"{told.path} {future}: {told.outcome!r}, then {answer.content!r}"[:600])


def _asked_again(proxy: Recording, future: str, told: Told) -> httpx.Response:
    headers = {"X-API-Key": told.key, "Accept": "application/x-protobuf", "Content-Type": "application/json"}
    return proxy.send_on("POST", POLL, json.dumps({"request_id": future}).encode(), headers)


def _looked(proxy: Recording, path: str, key: str) -> httpx.Response:
    return proxy.send_on("GET", path, b"", {"X-API-Key": key})


def digests(daemon: CrashedDaemon, scripts: Sequence[TenantScript], report: Report) -> dict[str, str]:
    """SHA-256 of each tenant's last checkpoint as it lies on disk: weights and moments, and in its header step
    and tokens. Equal states are equal files.

    Each tenant removed all of its adapters but one.
    """
    found = {}
    with Client(daemon.config) as client:
        for script in scripts:
            if script.failure:
                continue
            listed = client.submit(ListAdapters(), tenant=TenantId(script.name)).result(30)
            assert isinstance(listed, AdapterList)
            states = [
                file
                for each in listed.adapters
                for file in daemon.layout.checkpoint(each.adapter, LAST).glob("*/state.safetensors")
            ]
            if len(listed.adapters) != 1 or len(states) != 1:
                said = f"{len(listed.adapters)} adapters and {len(states)} last states instead of one"
                report.lost.append(f"{script.name}: has {said}")
                continue
            found[script.name] = hashlib.sha256(states[0].read_bytes()).hexdigest()
    return found


def compare(disturbed: Life, calm: Life, report: Report) -> None:
    """Those that came to their end as a whole; what others saw until they failed."""
    for found, expected in zip(disturbed.scripts, calm.scripts, strict=True):
        if found.name in disturbed.digests and found.name in calm.digests:
            report.compared += 1
            if disturbed.digests[found.name] != calm.digests[found.name]:
                report.differing.append(f"{found.name}: the training state after {found.rounds} rounds")
        seen, others = [*found.seen], [*expected.seen]
        if found.failure or expected.failure:
            both = min(len(seen), len(others))
            seen, others = seen[:both], others[:both]
        for index, (one, other) in enumerate(itertools.zip_longest(seen, others)):
            if one != other:
                report.differing.append(f"{found.name}: at {index} saw {one!r} instead of {other!r}")
                break


def broken_promises(daemon: CrashedDaemon) -> list[str]:
    """What the daemon's own log says must never be."""
    file = daemon.layout.logs / "daemon.log"
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    return [f"the daemon found: {line[:600]}" for line in lines if _BROKEN.search(line)]
