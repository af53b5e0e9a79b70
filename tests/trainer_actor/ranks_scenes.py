"""Scenes with adapters, played by one process in a test and by two as a script, and what came of each.

Run as a script it is rank 0 of trainers with two: a process has one group for its life, and that of the tests has
none. So it forks for each trainer, having read the libraries once.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import torch
from loractl.bus.errors import LoractlError
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, spec, state_in
from loractl.tests.trainer_actor.test_compute_compositions import PARTS, again, prepare, run
from loractl.tests.trainer_actor.test_compute_pieces import NoRoom
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PartResult, PassPart
from safetensors.torch import save_file
from torch import Tensor

Came = dict[str, Tensor]
SETTINGS = {"threads": 1, "pass_tokens": 64}
FAMILY = "wide"

A, B = spec(rank=4, seed=1), spec(rank=12, seed=2, train_unembed=False)
OF_A = [
    batch(0, [9, 20, 5, 30, 11, 40, 8], slot=0, lora=A),
    batch(2, [23], slot=0, lora=A),
]
OF_B = [
    batch(1, [17, 25, 3], slot=1, lora=B, loss="ppo"),
    batch(3, [31, 14, 6, 6], slot=1, lora=B, loss="gspo"),
]
STEP = adam(weight_decay=0.01, grad_clip_norm=1.0)


def ended(engine: TrainEngine, slot: int, name: str) -> Came:
    state = state_in(engine, slot)
    return {f"{name}/{piece}": value for piece, value in state.pieces.items()}


def answered(results: Sequence[object], name: str) -> Came:
    came = {}
    for number, result in enumerate(results):
        assert isinstance(result, PartResult), result
        came[f"{name}/{number}/logprobs"] = torch.tensor(result.logprobs)
        came[f"{name}/{number}/terms"] = torch.tensor(result.loss_terms)
        came[f"{name}/{number}/loss"] = torch.tensor(result.metrics["loss:sum"])
    return came


def window(engine: TrainEngine, passes: Sequence[Sequence[PassPart]], slots: Mapping[int, str]) -> Came:
    """Passes, then a step of each slot: its answers and its state before and after."""
    for slot in slots:
        begin(engine, slot, (A, B)[slot])
    said: dict[int, list[object]] = {slot: [] for slot in slots}
    for parts in passes:
        for part, outcome in zip(parts, engine.forward_backward(parts), strict=True):
            said[part.slot].append(outcome)
    came: Came = {}
    for slot, name in slots.items():
        came |= answered(said[slot], name) | ended(engine, slot, f"{name}/before")
    for slot in slots:
        engine.optim_step(slot, STEP)
    for slot, name in slots.items():
        came |= ended(engine, slot, f"{name}/after")
    return came


def alone(engine: TrainEngine) -> Came:
    came = window(engine, [[part] for part in OF_A], {0: "a"})
    return came | window(engine, [[part] for part in OF_B], {1: "b"})


def interleaved(engine: TrainEngine) -> Came:
    order = [[OF_A[0]], [OF_B[0]], [OF_A[1]], [OF_B[1]]]
    return window(engine, order, {0: "a", 1: "b"})


def together(engine: TrainEngine) -> Came:
    order = [[OF_B[0], OF_A[0]], [OF_A[1], OF_B[1]]]
    return window(engine, order, {0: "a", 1: "b"})


def few_datums(engine: TrainEngine) -> Came:
    came: Came = {}
    for count in (1, 3):
        begin(engine, 0, A)
        outcomes = engine.forward_backward([batch(count, [21, 9, 16][:count], slot=0, lora=A)])
        came |= answered(outcomes, f"{count}") | ended(engine, 0, f"{count}")
    return came


def not_a_number(engine: TrainEngine) -> Came:
    """B's second datum fails it, and nobody else."""
    begin(engine, 0, A)
    begin(engine, 1, B)
    wrong = batch(1, [17, 25], slot=1, lora=B, loss="ppo")
    wrong.old_logprobs[30] = -np.inf
    mine, theirs = engine.forward_backward([OF_A[0], wrong])
    assert isinstance(theirs, LoractlError)
    return answered([mine], "a") | ended(engine, 0, "a") | ended(engine, 1, "b")


def without_room(engine: TrainEngine) -> Came:
    """Memory runs out on rank 0, and then on the other one: one datum is on each, and alone all are on rank 0."""
    came: Came = {}
    shortages = {"here": _NoRoomOnce(rows=16, after=3), "there": _ShortOfMemory(), "nowhere": nullcontext()}
    for name, short in shortages.items():
        begin(engine, 0, A)
        begin(engine, 1, B)
        parts = [batch(5, [250, 240], slot=0, lora=A), batch(6, [250, 240], slot=1, lora=B)]
        runs = [engine.begin(part) for part in parts]
        with short:
            engine.run(runs)
        while waiting := [each for each in runs if each.outcome is None]:
            engine.run(waiting)
        came |= answered([each.outcome for each in runs], name)
        came[f"{name}/restarted"] = torch.tensor([each.alone for each in runs])
        came |= ended(engine, 0, f"{name}/a") | ended(engine, 1, f"{name}/b")
    return came


class _NoRoomOnce(NoRoom):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except torch.OutOfMemoryError:
            self.left = 1 << 30
            raise


class _ShortOfMemory:
    """The other rank may have few bytes more than it has."""

    def __enter__(self) -> None:
        (self._other,) = psutil.Process().children()
        self._before = resource.prlimit(self._other.pid, resource.RLIMIT_AS)
        most = self._other.memory_info().vms + (2 << 20)
        resource.prlimit(self._other.pid, resource.RLIMIT_AS, (most, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.prlimit(self._other.pid, resource.RLIMIT_AS, self._before)


def noted(engine: TrainEngine) -> Came:
    """Where neighbours matter, alone in the noted passes: 1 where all is as it was among others."""
    parts = [PARTS[4], PARTS[3], PARTS[5]]
    torch.set_num_threads(2)
    try:
        prepare(engine)
        first = run(engine, parts)
        prepare(engine)
        alone = [run(engine, [again(part, end)])[0] for part, end in zip(parts, first, strict=True)]
    finally:
        torch.set_num_threads(1)
    return {"same": torch.tensor([mine == other for mine, other in zip(alone, first, strict=True)])}


def measured(engine: TrainEngine) -> Came:
    costs = engine.measure()
    return {"positive": torch.tensor(min(costs.pass_ms, costs.token_ms) > 0)}


SCENES: dict[str, Callable[[TrainEngine], Came]] = {
    scene.__name__: scene
    for scene in (alone, interleaved, together, few_datums, not_a_number, without_room, noted, measured)
}


def main(models: str, worlds: str) -> int:
    """worlds: lines of JSON, [file for what came, data parallel, tensor parallel, scenes]."""
    for out, data_parallel, tensor_parallel, scenes in map(json.loads, worlds.splitlines()):
        pid = os.fork()
        if pid == 0:
            play(Path(models), out, scenes, data_parallel=data_parallel, tensor_parallel=tensor_parallel)
            return 0
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            return code
    return 0


def play(models: Path, out: str, scenes: Sequence[str], **sizes: int) -> None:
    torch.set_num_threads(1)
    engine = Lab(models).engine(FAMILY, **sizes, **SETTINGS)
    came = {f"{name}/{key}": value for name in scenes for key, value in SCENES[name](engine).items()}
    (other,) = psutil.Process().children()
    engine.close()
    came["left"] = torch.tensor(other.is_running())
    save_file({key: value.contiguous().clone() for key, value in came.items()}, out)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
