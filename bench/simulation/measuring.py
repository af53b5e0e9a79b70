"""What work costs on this machine, measured now: the only part of the simulator that needs torch.

SmolLM2-135M's shape with random weights, rank-8 adapters on attention and MLP, one thread. Every figure is
processor time, the median of some rounds in turns, so what else the machine does counts little.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PassPart
from loractl.trainer_actor.spill import SpillStore
from swap import A, B, Scene, measure_case
from train_ways import ADAM, DTYPES, RANK, Datums, build_engine, lora_of, make_model, part_of

from .costs import TWO_CORES, Machine

SHAPE = "smollm2-135m"
ROUNDS = 7
# Adapters, and the length of the datum that each has in the pass: alone and in company. None is more than
# one pass, `trainer.pass_tokens`, on a CPU.
_PASSES = ((1, 16), (1, 64), (1, 256), (4, 16), (4, 64), (16, 16))
_ADAPTERS = max(adapters for adapters, _ in _PASSES)


def measured(dtype: str, rounds: int = ROUNDS) -> Machine:
    """`TWO_CORES` with all that can be measured in its place; takes a minute or two."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loractl-sim-") as name:
        make_model(SHAPE, DTYPES[dtype], "cpu", Path(name) / "model")
        engine = build_engine(Path(name) / "model", dtype, "cpu", 1, _ADAPTERS)
        pass_ms, adapter_ms, token_ms = _pass_costs(engine, rounds)
        rank_parameters = engine.state_bytes(lora_of(0)) // (16 * RANK)
        return Machine(
            origin=f"measured: {SHAPE} in {dtype}, processor time of one thread, medians of {rounds}",
            pass_ms=pass_ms,
            adapter_ms=adapter_ms,
            token_ms=token_ms,
            pass_tokens=engine.pass_tokens,
            step_ms_per_million=_step_ms(engine, rounds) / (rank_parameters * RANK / 1e6),
            copy_bytes_per_ms=_copy_bytes_per_ms(dtype, rounds),
            disk_bytes_per_ms=_disk_bytes_per_ms(dtype, Path(name) / "spill", rounds),
            overlap=False,
            rank_parameters=rank_parameters,
            weight_bytes=engine.row_bytes(lora_of(0)) // (rank_parameters * RANK) - 20,
            device_bytes=TWO_CORES.device_bytes,
            host_bytes=TWO_CORES.host_bytes,
            disk_bytes=TWO_CORES.disk_bytes,
        )


def _pass_costs(engine: TrainEngine, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of a pass, of each adapter in it and of each position: those that are least wrong, in
    proportion, over all kinds of passes."""
    assert engine.pass_tokens >= max(adapters * length for adapters, length in _PASSES)
    works = [partial(engine.forward_backward, _parts(*kind)) for kind in _PASSES]
    took_ms = np.array(_medians_ms(works, rounds))
    factors = np.array([(1, adapters, adapters * length) for adapters, length in _PASSES])
    found, *_ = np.linalg.lstsq(factors / took_ms[:, None], np.ones(len(_PASSES)), rcond=None)
    return float(found[0]), float(found[1]), float(found[2])


def _parts(adapters: int, length: int) -> list[PassPart]:
    tokens = np.random.default_rng(0).integers(0, 1000, (adapters, 1, length))
    return [part_of(slot, [Datums(each, each)]) for slot, each in enumerate(tokens)]


def _step_ms(engine: TrainEngine, rounds: int) -> float:
    """Of one adapter, of several that step together."""
    steps = [(slot, ADAM) for slot in range(_ADAPTERS)]
    gradients = partial(engine.forward_backward, _parts(_ADAPTERS, 16))
    return _medians_ms([gradients, partial(engine.optim_steps, steps)], rounds)[1] / _ADAPTERS


def _copy_bytes_per_ms(dtype: str, rounds: int) -> float:
    """A swap, both ways, through the trainer's own `Residents`."""
    swap = measure_case(SHAPE, RANK, "window", DTYPES[dtype], torch.device("cpu"), 3 * rounds)
    return 2 * swap.state_bytes / swap.swap_ms


def _disk_bytes_per_ms(dtype: str, directory: Path, rounds: int) -> float:
    """Of what the processor does for it; how long the disk itself takes is another matter."""
    store, scene = SpillStore(directory), Scene(SHAPE, RANK, DTYPES[dtype], torch.device("cpu"))
    for adapter in (A, B):  # the second one sends the first one out of the only slot
        scene.train(adapter, gradients=True)
    state = scene.residents.state(A)

    def there_and_back() -> None:
        store.write(A, state)
        store.read(A, torch.empty)

    return 2 * state.size_bytes / _medians_ms([there_and_back], rounds)[0]


def _medians_ms(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Of each, in turns; what is set up at a first time counts for none."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(1 + rounds):
        for work, mine in zip(works, taken, strict=True):
            began = time.process_time()
            work()
            mine.append(1000 * (time.process_time() - began))
    return [statistics.median(mine[1:]) for mine in taken]
