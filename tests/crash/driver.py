"""The crash test: tenants train, save, sample and delete through the SDK while a seeded killer sends kill -9.

At the end every future that a client was told is asked for once more, and every adapter's whole training
state is compared with that of the same script where nobody was killed.

    python tests/crash/driver.py --kills 200 [--seed N]

ends with `kills K, acknowledged N, lost 0, doubled 0, differing 0`, or says what went wrong, with the seed.
"""

import argparse
import hashlib
import itertools
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import safetensors.numpy
from loractl.bus.client import Client
from loractl.bus.ids import TenantId
from loractl.bus.messages import AdapterList, ListAdapters
from loractl.daemon.processes import last_words
from loractl.tests.crash.crashed_daemon import ACTORS, CrashedDaemon, settings, write_settings
from loractl.tests.crash.killer import TARGETS, Killer
from loractl.tests.crash.recording import POLL, Record, Recording, Told, is_final, recording
from loractl.tests.crash.tenant_script import LAST, TenantScript, run_all
from loractl.tests.trainer_actor.loop.random_model import make_model

TENANTS = 8
# Without kills, so many rounds; with them, as many as it takes.
_QUIET_ROUNDS = 12
_END_S = 240.0
_AMISS = re.compile(r'"level": ?"(warning|error|critical)"')


@dataclass
class Report:
    """What the last line says. lost, doubled, differing: in words, one each."""

    seed: int
    kills: int = 0
    acknowledged: int = 0
    rounds: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    logs: str = ""

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.differing or self.failures)

    @property
    def last_line(self) -> str:
        return (
            f"kills {self.kills}, acknowledged {self.acknowledged}, lost {len(self.lost)}, "
            f"doubled {len(self.doubled)}, differing {len(self.differing)}"
        )

    def words(self) -> str:
        said = [f"seed {self.seed}, {self.rounds} rounds of {TENANTS} tenants"]
        if not self.good:
            said += ["--- what was done", *self.timeline, "--- what the daemons logged", self.logs]
            for name in ("lost", "doubled", "differing", "failures"):
                said += [f"{name}: {each}" for each in getattr(self, name)[:20]]
            said.append(f"again with: make crash KILLS={self.kills} SEED={self.seed}")
        return "\n".join([*said, self.last_line])


@dataclass
class Life:
    """One run of all scripts. digests: of every adapter's training state, by tenant."""

    scripts: list[TenantScript]
    record: Record
    digests: dict[str, str] = field(default_factory=dict)
    killer: Killer | None = None


def crash(
    kills: int,
    seed: int,
    *,
    targets: Mapping[str, int] = TARGETS,
    say: Callable[[str], None] = print,
    keep: bool = False,
) -> Report:
    """Run it all; the second run has the rounds that the first one had. keep: leave its files behind."""
    # Short, because a socket's path has room for about a hundred bytes.
    root = Path(tempfile.mkdtemp(prefix="lo"))
    report = Report(seed)
    try:
        model = make_model(root / "model")
        disturbed = _disturbed(root / "k", model, kills, seed, targets, report, say)
        if report.failures:
            return report
        say(f"undisturbed, the same {report.rounds} rounds")
        rounds = [script.rounds for script in disturbed.scripts]
        calm = _undisturbed(root / "c", model, rounds, report)
        if not report.failures:
            _compare(disturbed, calm, report)
        return report
    finally:
        if keep:
            say(f"its files are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


def _disturbed(
    state: Path,
    model: Path,
    kills: int,
    seed: int,
    targets: Mapping[str, int],
    report: Report,
    say: Callable[[str], None],
) -> Life:
    write_settings(state, settings(model))
    daemon = CrashedDaemon(state)
    with recording(lambda: daemon.url) as proxy:
        try:
            daemon.start()
            daemon.until_ready()
            say(f"disturbed, seed {seed}")
            life = _live_with_kills(daemon, proxy, kills, seed, targets, report)
            if not report.failures:
                _ask_again(proxy, report)
                life.digests = _digests(daemon)
        finally:
            report.logs = _logged(daemon)
            daemon.stop()
    report.rounds = sum(script.rounds for script in life.scripts)
    report.acknowledged = len(life.record.told)
    return life


def _live_with_kills(
    daemon: CrashedDaemon, proxy: Recording, kills: int, seed: int, targets: Mapping[str, int], report: Report
) -> Life:
    killer = Killer(daemon, seed, kills, lambda: proxy.record.finals, targets)
    goes_on = (lambda _: not killer.over) if kills else (lambda rounds: rounds < _QUIET_ROUNDS)
    scripts = [
        TenantScript(number, proxy.url, daemon.key(f"tenant-{number}"), goes_on) for number in range(TENANTS)
    ]
    threads = run_all(scripts)
    killer.run()
    report.kills, report.timeline = killer.done, killer.timeline
    if killer.failure:
        report.failures.append(killer.failure)
    killer.note("no more kills")
    deadline = time.monotonic() + (_END_S if not report.failures else 1.0)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    killer.note("the end")
    report.failures += _failures(scripts, [thread.is_alive() for thread in threads])
    return Life(scripts, proxy.record, killer=killer)


def _undisturbed(state: Path, model: Path, rounds: list[int], report: Report) -> Life:
    write_settings(state, settings(model))
    daemon = CrashedDaemon(state)
    with recording(lambda: daemon.url) as proxy:
        try:
            daemon.start()
            daemon.until_ready()
            scripts = [
                TenantScript(
                    number, proxy.url, daemon.key(f"tenant-{number}"), lambda done, n=number: done < rounds[n]
                )
                for number in range(TENANTS)
            ]
            threads = run_all(scripts)
            for thread in threads:
                thread.join(_END_S)
            report.failures += [
                f"undisturbed: {each}"
                for each in _failures(scripts, [thread.is_alive() for thread in threads])
            ]
            return Life(scripts, proxy.record, {} if report.failures else _digests(daemon))
        finally:
            daemon.stop()


def _failures(scripts: list[TenantScript], alive: list[bool]) -> list[str]:
    said = []
    for script, lives in zip(scripts, alive, strict=True):
        if script.failure:
            said.append(f"{script.name}: {script.failure}")
        elif lives:
            said.append(f"{script.name}: hangs in round {script.rounds} while {script.at}")
    return said


def _ask_again(proxy: Recording, report: Report) -> None:
    """Every future that was told has one outcome, the one that was read first."""
    report.doubled += proxy.record.twice
    for future, told in proxy.record.told.items():
        answer = _asked_again(proxy, future, told)
        if not is_final(answer):
            report.lost.append(f"{told.path} {future}: {answer.status_code} {answer.text[:200]}")
        elif told.changed or (told.outcome is not None and told.outcome != answer.content):
            report.doubled.append(f"{told.path} {future}: {told.outcome!r}, then {answer.content!r}"[:600])


def _asked_again(proxy: Recording, future: str, told: Told) -> httpx.Response:
    headers = {"X-API-Key": told.key, "Accept": "application/x-protobuf", "Content-Type": "application/json"}
    return proxy.send_on("POST", POLL, json.dumps({"request_id": future}).encode(), headers)


def _digests(daemon: CrashedDaemon) -> dict[str, str]:
    """SHA-256 over every tensor of each tenant's last checkpoint: weights, moments, gradients."""
    found = {}
    with Client(daemon.config) as client:
        for number in range(TENANTS):
            tenant = f"tenant-{number}"
            listed = client.submit(ListAdapters(), tenant=TenantId(tenant)).result(30)
            assert isinstance(listed, AdapterList)
            [adapter] = [each.adapter for each in listed.adapters]
            found[tenant] = _digest(daemon.layout.checkpoint(adapter, LAST))
    return found


def _digest(checkpoint: Path) -> str:
    [file] = checkpoint.glob("*/state.safetensors")
    total = hashlib.sha256()
    for name, tensor in sorted(safetensors.numpy.load_file(file).items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()


def _compare(disturbed: Life, calm: Life, report: Report) -> None:
    for found, expected in zip(disturbed.scripts, calm.scripts, strict=True):
        if disturbed.digests[found.name] != calm.digests[found.name]:
            report.differing.append(f"{found.name}: the training state after {found.rounds} rounds")
        for index, (one, other) in enumerate(itertools.zip_longest(found.seen, expected.seen)):
            if one != other:
                report.differing.append(f"{found.name}: at {index} saw {one!r} instead of {other!r}")
                break


def _logged(daemon: CrashedDaemon, most: int = 60) -> str:
    """Warnings and errors of all processes, the last ones of each."""
    said = []
    for name in ACTORS:
        words = last_words(daemon.layout.logs / f"{name}.out", lines=12)
        said += [f"{name}.out: {line[:500]}" for line in words]
    for file in sorted(daemon.layout.logs.glob("*.log")):
        amiss = [line for line in file.read_text(errors="replace").splitlines() if _AMISS.search(line)]
        said += [f"{file.stem}: {line[:500]}" for line in amiss[-most:]]
    return "\n".join(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--targets", default=",".join(TARGETS), help="whom to kill, by name")
    parser.add_argument("--keep", action="store_true", help="leave the files of both runs behind")
    arguments = parser.parse_args()
    # The SDK says of every broken connection that it tries again.
    logging.disable(logging.CRITICAL)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    targets = {name: TARGETS[name] for name in arguments.targets.split(",")}
    report = crash(arguments.kills, seed, targets=targets, keep=arguments.keep)
    print(report.words(), flush=True)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
