"""How much memory training states take, against the formula, as adapters grow from 1 to 1,000 registered.

Each count runs in a process of its own: a real engine on a tiny model made here, whose adapters are
each created, trained for one step and left with gradients, in budgets that only a few of them fill. The
peak of the process's resident memory (VmHWM) is taken from when the engine has run a few passes until
the end. The formula's bound, for adapters whose geometry has N numbers in float32:

    device   min(slots, device_bytes // 20 N, adapters) rows of 20 N bytes
    host     min(host_bytes, adapters x 16 N)

20 N is a row with gradients, moments and the scratch row of a pass; 16 N a whole state. Beyond the
budgets states lie on disk and take no memory.

    python bench/memory.py [--counts N,...] [--quick] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from loractl.bus.config import set_process_environment
from loractl.trainer_actor.absent_libraries import silence_absent_libraries

# Before torch is imported. One arena: memory that malloc keeps for other threads is not ours to count.
set_process_environment({"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
silence_absent_libraries()

import numpy as np  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from loractl.bus.config import Config, ModelConfig, TrainerConfig  # noqa: E402
from loractl.bus.ids import AdapterId  # noqa: E402
from loractl.bus.messages import LoraSpec  # noqa: E402
from loractl.client.interrupts import interrupt_when_ended  # noqa: E402
from loractl.trainer_actor.budgets import Budgets  # noqa: E402
from loractl.trainer_actor.engine import TrainEngine  # noqa: E402
from loractl.trainer_actor.passes import AdamParams, PassPart  # noqa: E402
from loractl.trainer_actor.resident import Residents  # noqa: E402
from loractl.trainer_actor.spill import SpillStore  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

SLOTS, RANK = 8, 16
DEVICE_BYTES = 32 * 2**20
HOST_BYTES = 96 * 2**20
COUNTS = "1,3,10,30,100,300,1000"
QUICK_COUNTS = "1,10,100,1000"
ADAM = AdamParams(learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)


@dataclass(frozen=True)
class Found:
    """Bytes. peak: of resident memory above what it was before. disk: of files at the end."""

    adapters: int
    state_bytes: int
    formula_bytes: int
    peak_bytes: int
    disk_bytes: int

    @property
    def ratio(self) -> float:
        return self.peak_bytes / self.formula_bytes


# --- one process per count -----------------------------------------------------------------------------


def run_count(count: int) -> Found:
    """In the process that does nothing else."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    torch.set_num_threads(1)
    lora = LoraSpec(rank=RANK, alpha=32.0, seed=1)
    with tempfile.TemporaryDirectory() as directory:
        engine = build_engine(Path(directory))
        budgets = Budgets(slots=SLOTS, device_bytes=DEVICE_BYTES, host_bytes=HOST_BYTES, disk_bytes=1 << 50)
        residents = Residents(engine.bank, budgets, SpillStore(Path(directory) / "spill"))
        for number in range(3):
            train(engine, residents, f"warm-up {number}", lora)
            residents.remove(AdapterId(f"warm-up {number}"))
        engine.bank.memory.release()
        forget_peak()
        before = memory("VmRSS")
        for number in range(count):
            train(engine, residents, str(number), lora)
            residents.take_moves()
        rows = min(SLOTS, DEVICE_BYTES // engine.row_bytes(lora), count)
        state_bytes = engine.state_bytes(lora)
        return Found(
            adapters=count,
            state_bytes=state_bytes,
            formula_bytes=rows * engine.row_bytes(lora) + min(HOST_BYTES, count * state_bytes),
            peak_bytes=memory("VmHWM") - before,
            disk_bytes=sum(file.stat().st_size for file in (Path(directory) / "spill").iterdir()),
        )


def build_engine(directory: Path) -> TrainEngine:
    logging.disable_progress_bar()
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 512}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).save_pretrained(
        directory / "model"
    )
    model = ModelConfig(path=str(directory / "model"), dtype="float32", device="cpu")
    return TrainEngine.build(Config(model=model, trainer=TrainerConfig(slots=SLOTS, threads=1)))


def train(engine: TrainEngine, residents: Residents, name: str, lora: LoraSpec) -> None:
    """A step, and gradients that wait for the next one."""
    adapter = AdapterId(name)
    residents.admit(adapter, lora)
    slot = residents.place(adapter)
    tokens = np.arange(16, dtype=np.int64)
    empty = np.zeros(0, dtype=np.float32)
    part = PassPart(
        slot=slot,
        lora=lora,
        lengths=np.array([16]),
        tokens=tokens,
        targets=tokens,
        weights=np.ones(16, dtype=np.float32),
        old_logprobs=empty,
        advantages=empty,
        loss="cross_entropy",
        loss_config={},
        backward=True,
    )
    engine.forward_backward([part])
    engine.optim_step(slot, ADAM)
    engine.forward_backward([part])


def forget_peak() -> None:
    """Let the kernel count VmHWM from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """Bytes, of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


# --- all of them ---------------------------------------------------------------------------------------


def measure(counts: list[int]) -> list[Found]:
    found = []
    for count in counts:
        command = [sys.executable, "-W", "ignore", __file__, "--count", str(count)]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found.append(Found(**json.loads(ran.stdout.splitlines()[-1])))
    return found


def show(found: list[Found]) -> None:
    title = f"{SLOTS} slots, device {DEVICE_BYTES / 1e6:.0f} MB, host {HOST_BYTES / 1e6:.0f} MB"
    table = Table(title=title)
    for column in ("adapters", "states MB", "formula MB", "peak RSS MB", "peak / formula", "on disk MB"):
        table.add_column(column, justify="right")
    for each in found:
        megabytes = (each.adapters * each.state_bytes, each.formula_bytes, each.peak_bytes)
        states, formula, peak = (f"{size / 1e6:.1f}" for size in megabytes)
        table.add_row(
            str(each.adapters), states, formula, peak, f"{each.ratio:.2f}", f"{each.disk_bytes / 1e6:.1f}"
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", help=f"default {COUNTS}")
    parser.add_argument("--quick", action="store_true", help="fewer counts")
    parser.add_argument("--json", action="store_true", help="one object for programs on standard output")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count is not None:
        print(json.dumps(asdict(run_count(options.count))))
        return
    interrupt_when_ended()
    counts = options.counts or (QUICK_COUNTS if options.quick else COUNTS)
    found = measure([int(count) for count in counts.split(",")])
    if options.json:
        cases = [{**asdict(each), "ratio": each.ratio} for each in found]
        budgets = {"slots": SLOTS, "device_bytes": DEVICE_BYTES, "host_bytes": HOST_BYTES}
        print(json.dumps({**budgets, "cases": cases}))
    else:
        show(found)


if __name__ == "__main__":
    main()
