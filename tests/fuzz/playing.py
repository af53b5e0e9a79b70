"""Plays cases in processes of their own, so that one which crashes, hangs or eats memory is a fault and no end.

The process that plays says which case it is at in a place that both see; the one that watches ends it when
it stands still for too long, and goes on behind the case.
"""

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from loractl.tests.fuzz.subject import MIB, Fault, Play, Subject, source_of

_LOOK_S = 1.0
_LAST_S, _AGAIN_S = 10.0, 0.2
_IN_MEMORY = Path("/dev/shm")
_SCRATCH_BYTES = 256 * MIB
# Addresses for threads' stacks and libraries that come later.
_AROUND_BYTES = 2048 * MIB
# Of a share of cases, after which what is kept once (caches, pools) is there.
_WARM_SHARE = 4
_libc = ctypes.CDLL(None)
_processes = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Played:
    """What came of a subject's cases. cpu_s: processor time; grown, peak: bytes above what there was at first."""

    cases: int = 0
    cpu_s: float = 0.0
    grown_bytes: int = 0
    peak_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: "Played") -> None:
        self.cases += other.cases
        self.cpu_s += other.cpu_s
        self.grown_bytes = max(self.grown_bytes, other.grown_bytes)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.faults += other.faults


# --- in this process ---------------------------------------------------------------------------------


def play(subject: Subject, seed: int, cases: range, at: Callable[[int], None] = lambda case: None) -> Played:
    """Play some cases, one after the other. at: is told of each before it begins."""
    played = Played()
    memory = _Memory()
    warm = cases.start + len(cases) // _WARM_SHARE
    began = time.process_time()
    with _Stage(subject) as stage:
        for case in cases:
            at(case)
            if case == warm:
                memory.warm()
            try:
                on = stage.set_for(case)
            except Exception:  # noqa: BLE001  # nothing can be played then
                played.faults.append(Fault(subject.name, seed, case, f"not opened: {traceback.format_exc()}"))
                break
            what = _play_one(subject, on, seed, case)
            played.cases += 1
            if what:
                played.faults.append(Fault(subject.name, seed, case, what))
    played.cpu_s = time.process_time() - began
    played.grown_bytes, played.peak_bytes = memory.grown(), memory.peak()
    gc.unfreeze()
    _judge_memory(subject, seed, cases, played)
    return played


def play_again(subject: Subject, seed: int, case: int) -> Played:
    """Play one case as it was played, with those before it that it may build on."""
    first = case - case % subject.episode if subject.episode else case
    return play(subject, seed, range(first, case + 1))


def _play_one(subject: Subject, on: Play, seed: int, case: int) -> str:
    """What went wrong, or nothing."""
    began = time.process_time()
    try:
        on(source_of(subject, seed, case))
    except Exception:  # noqa: BLE001  # whatever a case raises is what was looked for
        return traceback.format_exc()
    cost_s = time.process_time() - began
    return f"it took {cost_s:.1f} s of processor time" if cost_s > subject.limit_s else ""


def _judge_memory(subject: Subject, seed: int, cases: range, played: Played) -> None:
    for name, found, most in (
        ("grew by", played.grown_bytes, subject.grows_bytes),
        ("reached", played.peak_bytes, subject.peak_bytes),
    ):
        if found > most:
            what = f"memory {name} {found // MIB} MiB in cases {cases.start} to {cases.stop - 1}; {most // MIB} MiB are allowed"
            played.faults.append(Fault(subject.name, seed, cases.stop - 1, what))


class _Stage:
    """What cases play on, opened anew for each episode."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._open = ExitStack()
        self._episode = -1
        self._play: Play | None = None

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def set_for(self, case: int) -> Play:
        episode = case // self._subject.episode if self._subject.episode else 0
        if self._play is None or episode != self._episode:
            self._open.close()
            # A short name, because a socket's path may have about 100 bytes.
            directory = tempfile.mkdtemp(prefix="lofz", dir=_scratch())
            self._open.callback(shutil.rmtree, directory, ignore_errors=True)
            self._play = self._open.enter_context(self._subject.open(Path(directory)))
            self._episode = episode
        return self._play


def _scratch() -> str | None:
    """A disk in memory where there is one: files by the ten thousand cost no disk its time there."""
    if not _IN_MEMORY.is_dir() or shutil.disk_usage(_IN_MEMORY).free < _SCRATCH_BYTES:
        return None
    return str(_IN_MEMORY)


class _Memory:
    """Of this process, in bytes, as Linux counts it."""

    def __init__(self) -> None:
        gc.freeze()  # what was there before is looked through no more
        _reset_peak()
        self._first = self._warm = _status("VmRSS")

    def warm(self) -> None:
        self._warm = _in_use()

    def grown(self) -> int:
        return max(0, _in_use() - self._warm)

    def peak(self) -> int:
        return max(0, _status("VmHWM") - self._first)


def _in_use() -> int:
    """Without what the allocator only keeps for the next one who asks: a bomb leaves it some of 128 MiB."""
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {key}")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# --- in others ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    subject: Subject
    cases: range


class _Worker:
    """A process at some cases of one subject."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self._seed = seed
        self._case: Synchronized[int] = _processes.Value("q", task.cases.start)
        self._seen = (task.cases.start, time.monotonic())
        self.ear, mouth = _processes.Pipe(duplex=False)
        self._process: ForkProcess = _processes.Process(
            target=_work, args=(task, seed, self._case, mouth), daemon=True
        )
        self._process.start()
        mouth.close()

    def hear(self) -> tuple[Played, Task | None] | None:
        """What came of it, and what is left to play; None while it is at work."""
        if self.ear.poll():
            return self._told()
        case, now = self._case.value, time.monotonic()
        if case != self._seen[0]:
            self._seen = (case, now)
        if now - self._seen[1] > self.task.subject.patience_s:
            self._end()
            return self._broken("it hangs: where, stands above")
        return None

    def _told(self) -> tuple[Played, Task | None]:
        try:
            played: Played = self.ear.recv()
        except EOFError:
            self._process.join()
            return self._broken(f"the process ended with {self._process.exitcode}")
        self._process.join()
        return played, None

    def _broken(self, what: str) -> tuple[Played, Task | None]:
        case = self._case.value
        subject, cases = self.task.subject, self.task.cases
        played = Played(cases=case + 1 - cases.start, faults=[Fault(subject.name, self._seed, case, what)])
        left = range(case + 1, cases.stop)
        return played, Task(subject, left) if left else None

    def _end(self) -> None:
        """With what it started, if it still can."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)
        until = time.monotonic() + _LAST_S
        while self._process.is_alive() and time.monotonic() < until:
            # More than once: what comes while it writes its stack down does not interrupt what it hangs in.
            self._process.terminate()
            self._process.join(_AGAIN_S)
        self._process.kill()
        self._process.join()


def _work(task: Task, seed: int, current: "Synchronized[int]", mouth: Connection) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    # What takes more is a fault of its own, and must not become one of the whole machine.
    most = _status("VmSize") + task.subject.peak_bytes + _AROUND_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def at(case: int) -> None:
        current.value = case

    mouth.send(play(task.subject, seed, task.cases, at))


def play_all(tasks: Sequence[Task], seed: int, jobs: int) -> Iterator[tuple[Subject, Played]]:
    """Play them all, so many at one time; tells of each as it ends."""
    waiting = [*tasks]
    working: list[_Worker] = []
    while waiting or working:
        while waiting and len(working) < jobs:
            working.append(_Worker(waiting.pop(0), seed))
        wait([worker.ear for worker in working], timeout=_LOOK_S)
        for worker in [*working]:
            heard: Any = worker.hear()
            if heard is None:
                continue
            working.remove(worker)
            played, left = heard
            if left is not None:
                waiting.insert(0, left)
            yield worker.task.subject, played
