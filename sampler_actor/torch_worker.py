"""The thread that owns the embedded engine's model: commands in, events out, steps in between.

Torch runs here and nowhere else, so it never blocks the actor's loop, and nothing needs a lock.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import assert_never

import structlog
import torch

from ..bus.errors import EngineFailed, LoractlError
from .engine import EngineSettings, VersionKey
from .torch_adapter import LoadedAdapter
from .torch_model import PackedModel
from .torch_steps import Events, Stepper, Task

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Submit:
    task: Task


@dataclass(frozen=True, slots=True)
class Cancel:
    task_key: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Answered with how many modules the version bound to."""

    key: VersionKey
    adapter: LoadedAdapter
    done: Future[int]


@dataclass(frozen=True, slots=True)
class Unbind:
    key: VersionKey
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Stop:
    """The last command. Whatever is under way ends with "abort"."""


Command = Submit | Cancel | Bind | Unbind | Stop


class Worker(threading.Thread):
    """post: called here, in this thread, with what each step or command brought.

    `started` is done once the model is loaded, and holds it. After a crash `failed` is true, and
    every further command is answered with `EngineFailed`.
    """

    def __init__(self, settings: EngineSettings, post: Callable[[Events], None]) -> None:
        # A daemon thread: a process that must go does not wait for a step.
        super().__init__(name="torch-engine", daemon=True)
        self.started: Future[PackedModel] = Future()
        self.failed = False
        self._settings = settings
        self._post = post
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def send(self, command: Command) -> None:
        """From any thread."""
        self._inbox.put(command)

    def run(self) -> None:
        torch.set_num_threads(self._settings.threads)
        self.started.set_running_or_notify_cancel()
        stepper: Stepper | None = None
        try:
            model = PackedModel(self._settings)
            stepper = Stepper(model, self._settings)
            self.started.set_result(model)
            self._serve(stepper)
        except Exception as error:  # noqa: BLE001 the loop's boundary: a bug ends the engine, not the actor
            self._die(error, stepper)

    def _serve(self, stepper: Stepper) -> None:
        with torch.inference_mode():
            while True:
                for command in self._received(wait=stepper.idle):
                    if isinstance(command, Stop):
                        self._post(stepper.close())
                        return
                    self._post(_perform(stepper, command))
                if not stepper.idle:
                    self._post(stepper.step())

    def _received(self, *, wait: bool) -> list[Command]:
        commands = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            commands.append(self._inbox.get())
        return commands

    def _die(self, error: Exception, stepper: Stepper | None) -> None:
        """Tell everyone, now and later, until Stop comes."""
        self.failed = True
        log.error("torch_engine.died", exc_info=error)
        failure = EngineFailed(f"the torch engine died: {type(error).__name__}: {error}")
        if not self.started.done():
            self.started.set_exception(error if isinstance(error, LoractlError) else failure)
        self._post([(key, failure) for key in (stepper.under_way() if stepper else ())])
        while not isinstance(command := self._inbox.get(), Stop):
            _refuse(command, failure, self._post)


def _perform(stepper: Stepper, command: Submit | Cancel | Bind | Unbind) -> Events:
    match command:
        case Submit(task):
            return stepper.submit(task)
        case Cancel(task_key):
            return stepper.abort(task_key)
        case Bind(key, adapter, done):
            # From here on its caller can no longer cancel it; setting a cancelled result would raise.
            if done.set_running_or_notify_cancel():
                done.set_result(stepper.add(key, adapter))
            return []
        case Unbind(key, done):
            events = stepper.remove(key)
            if done.set_running_or_notify_cancel():
                done.set_result(None)
            return events
        case _:
            assert_never(command)


def _refuse(command: Command, failure: EngineFailed, post: Callable[[Events], None]) -> None:
    match command:
        case Submit(task):
            post([(task.key, failure)])
        case Bind(done=done) | Unbind(done=done):
            if done.set_running_or_notify_cancel():
                done.set_exception(failure)
        case Cancel() | Stop():
            pass
        case _:
            assert_never(command)
