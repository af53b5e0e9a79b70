"""What passes and copies cost on this machine, by running a few of them on an adapter in no slot.

A pass is taken to cost a fixed time and a time per position; the best of some rounds stands for
each, since everything that disturbs a measurement makes it longer.
"""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..bus.messages import LoraSpec
from .bank import Bank
from .costs import Costs
from .part_run import PartRun
from .pass_runner import PassRunner
from .passes import PassPart

_LORA = LoraSpec(rank=8, alpha=8.0, seed=0)
_ROUNDS = 3
_FEW, _MANY_ON_CPU, _MANY_ON_CUDA = 16, 64, 2048
_COPIED_BYTES = 8 << 20
_LEAST_MS = 1e-6


def measure(runner: PassRunner, bank: Bank, *, max_sequence_tokens: int) -> Costs:
    """Takes about eight times as long as a pass over 64 positions (2048 on CUDA)."""
    most = _MANY_ON_CPU if bank.memory.device.type == "cpu" else _MANY_ON_CUDA
    length = min(_FEW, max_sequence_tokens)
    row = bank.new_row(_LORA)
    row.main.zero_()
    row.round_weights()

    def pass_over(datums: int) -> Callable[[], None]:
        def work() -> None:
            part = _datums(datums, length)
            runner.run([PartRun(part, row, bank.memory, datums * length)])

        return work

    try:
        few_ms, many_ms = _best_ms(bank, [pass_over(1), pass_over(most // length)])
    finally:
        row.give_back()
        bank.memory.release()
    token_ms = max((many_ms - few_ms) / (most // length * length - length), _LEAST_MS)
    return Costs(
        pass_ms=max(few_ms - length * token_ms, _LEAST_MS),
        token_ms=token_ms,
        copy_bytes_per_ms=_COPIED_BYTES / max(_copy_ms(bank), _LEAST_MS),
    )


def _copy_ms(bank: Bank) -> float:
    device = bank.memory.device
    host = torch.zeros(_COPIED_BYTES // 4, pin_memory=device.type == "cuda")
    target = torch.zeros_like(host, device=device)

    def copy() -> Tensor:
        return target.copy_(host, non_blocking=True)

    return _best_ms(bank, [copy])[0]


def _best_ms(bank: Bank, works: Sequence[Callable[[], object]]) -> list[float]:
    """Of each, in turns; what is set up at a first time counts for none."""
    best = [math.inf] * len(works)
    for round_ in range(1 + _ROUNDS):
        for index, work in enumerate(works):
            start = time.perf_counter()
            work()
            if bank.memory.device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                best[index] = min(best[index], (time.perf_counter() - start) * 1000)
    return best


def _datums(count: int, length: int) -> PassPart:
    """Datums of token 0, every position weighted."""
    total = count * length
    return PassPart(
        slot=-1,
        lora=_LORA,
        lengths=np.full(count, length),
        tokens=np.zeros(total, dtype=np.int64),
        targets=np.zeros(total, dtype=np.int64),
        weights=np.ones(total, dtype=np.float32),
        old_logprobs=np.zeros(0, dtype=np.float32),
        advantages=np.zeros(0, dtype=np.float32),
        loss="cross_entropy",
        loss_config={},
        backward=True,
    )
