"""The crash test: tenants train, save, sample and delete through the SDK while a seeded killer sends kill -9.

At the end every future that a client was told is asked for once more, and every adapter's whole training
state is compared with that of the same script where nobody was killed.

    python tests/crash/driver.py --kills 200 [--seed N]

ends with `kills K, acknowledged N, lost 0, doubled 0, differing 0`, or says what went wrong, with the seed. When
something failed, what can still be asked for and compared is, and the line ends with what was not.
"""

import argparse
import contextlib
import logging
import random
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loractl.bus.errors import LoractlError
from loractl.daemon.processes import last_words
from loractl.tests.crash.crashed_daemon import ACTORS, CrashedDaemon, settings, write_settings
from loractl.tests.crash.judging import Life, ask_again, broken_promises, compare, digests
from loractl.tests.crash.killer import TARGETS, Killer
from loractl.tests.crash.recording import Recording, recording
from loractl.tests.crash.report import Report
from loractl.tests.crash.tenant_script import TenantScript, run_all
from loractl.tests.trainer_actor.loop.random_model import make_model

TENANTS = 8
# Without kills, so many rounds; with them, as many as it takes.
_QUIET_ROUNDS = 12
_END_S = 240.0
_AMISS = re.compile(r'"level": ?"(warning|error|critical)"')
_EVENT = re.compile(r'"event": ?"([^"]*)"')
_EXPECTED = {"actor.died", "actor.orphaned", "orphan.ended"}


@dataclass(frozen=True)
class Plan:
    """soon: the share of kills that come soon after the one before. targets: whom to kill, with weights.
    chaos: a seed for `daemon start --chaos`; 0 for none."""

    kills: int
    seed: int
    soon: float = 0.25
    targets: Mapping[str, int] = field(default_factory=lambda: TARGETS)
    chaos: int = 0


def crash(plan: Plan, *, say: Callable[[str], None] = print, keep: bool = False) -> Report:
    """Run it all; the second run has the rounds that the first one had. keep: leave their files behind."""
    # Short, because a socket's path has room for about a hundred bytes.
    root = Path(tempfile.mkdtemp(prefix="lo"))
    report = Report(plan.seed, plan.chaos, tenants=TENANTS)
    try:
        model = make_model(root / "model")
        say(f"disturbed, seed {plan.seed}")
        disturbed = _live(root / "k", model, report, plan)
        if disturbed.scripts:
            say(f"undisturbed, the same {report.rounds} rounds")
            # Who failed had begun a round that does not count.
            rounds = [script.rounds + bool(script.failure) for script in disturbed.scripts]
            compare(disturbed, _live(root / "c", model, report, rounds), report)
        return report
    finally:
        if keep:
            say(f"its files are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


def _live(state: Path, model: Path, report: Report, given: Plan | list[int]) -> Life:
    """given: how it is to be disturbed; or how many rounds each tenant has, in peace."""
    write_settings(state, settings(model, chaos=given.chaos if isinstance(given, Plan) else 0))
    daemon = CrashedDaemon(state)
    life = Life()
    with recording(lambda: daemon.url) as proxy:
        try:
            daemon.start()
            daemon.until_ready()
            if isinstance(given, Plan):
                killer = Killer(
                    daemon, given.seed, given.kills, lambda: proxy.record.finals, given.targets, given.soon
                )
                life.scripts = _scripts(daemon, proxy, _until_killed(killer))
                _run(life.scripts, report, killer)
                _sum_up(report, life.scripts, proxy, killer)
                _revive(daemon, report)
                ask_again(proxy, report)
            else:
                life.scripts = _scripts(daemon, proxy, lambda number: lambda done: done < given[number])
                _run(life.scripts, report)
            life.digests = digests(daemon, life.scripts, report)
        except (TimeoutError, LoractlError) as error:
            report.failures.append(f"{type(error).__name__}: {error}")
        finally:
            report.failures += broken_promises(daemon)
            report.logs = "\n".join([*report.logs.splitlines(), *_complaints(daemon)])
            daemon.stop()
    return life


def _revive(daemon: CrashedDaemon, report: Report) -> None:
    """After a failure it may be down, and is wanted once more."""
    if not report.failures:
        return
    if daemon.has_ended:
        daemon.start()
    with contextlib.suppress(TimeoutError):
        daemon.until_ready()


def _until_killed(killer: Killer) -> Callable[[int], Callable[[int], bool]]:
    if killer.kills == 0:
        return lambda _: lambda done: done < _QUIET_ROUNDS
    return lambda _: lambda _: not killer.over


def _scripts(
    daemon: CrashedDaemon, proxy: Recording, goes_on_of: Callable[[int], Callable[[int], bool]]
) -> list[TenantScript]:
    return [
        TenantScript(number, proxy.url, daemon.key(f"tenant-{number}"), goes_on_of(number))
        for number in range(TENANTS)
    ]


def _run(scripts: list[TenantScript], report: Report, killer: Killer | None = None) -> None:
    threads = run_all(scripts)
    if killer is not None:
        killer.run()
    failed = killer is not None and bool(killer.failure)
    deadline = time.monotonic() + (1.0 if failed else _END_S)
    for script, thread in zip(scripts, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            script.failure = script.failure or f"hangs in round {script.rounds} while {script.at}"
        if script.failure:
            report.failures.append(f"{script.name}: {script.failure}")


def _sum_up(report: Report, scripts: list[TenantScript], proxy: Recording, killer: Killer) -> None:
    killer.note("the end")
    report.kills, report.timeline = killer.done, killer.timeline
    report.rounds = sum(script.rounds for script in scripts)
    report.acknowledged = proxy.record.acknowledged
    if killer.failure:
        report.failures.append(killer.failure)


def _complaints(daemon: CrashedDaemon, most: int = 4) -> list[str]:
    """Warnings and errors of all processes: of each kind the first ones."""
    said = []
    for name in ACTORS:
        words = last_words(daemon.layout.logs / f"{name}.out", lines=12)
        said += [f"{name}.out: {line[:500]}" for line in words]
    for file in sorted(daemon.layout.logs.glob("*.log")):
        kinds: Counter[str] = Counter()
        for line in file.read_text(errors="replace").splitlines():
            event = _AMISS.search(line) and _EVENT.search(line)
            if event and event[1] not in _EXPECTED:
                kinds[event[1]] += 1
                said += [f"{file.stem}: {line[:1500]}"] if kinds[event[1]] <= most else []
        said += [f"{file.stem}: {count} times {event}" for event, count in kinds.items()]
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--soon", type=float, default=0.25, help="share of kills soon after the one before")
    parser.add_argument("--chaos", type=int, default=0, help="of the daemon, besides: a seed")
    parser.add_argument("--targets", default=",".join(TARGETS), help="whom to kill, by name")
    parser.add_argument("--keep", action="store_true", help="leave the files of both runs behind")
    given = parser.parse_args()
    # The SDK says of every broken connection that it tries again, and of future versions what will change.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    targets = {name: TARGETS[name] for name in given.targets.split(",")}
    report = crash(Plan(given.kills, seed, given.soon, targets, given.chaos), keep=given.keep)
    print(report.words(), flush=True)
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
