"""How fast many tenants train on one base model: tokens per second of a round.

A round is one forward_backward and one optim_step of every tenant, each with its own rank-8 adapter
on attention and MLP. Four ways do the same rounds on the same tokens, model and adapters:

    fused   ours: all tenants in one pass, then their steps
    solo    ours: one adapter after the other
    peft    Hugging Face PEFT: per tenant set_adapter, forward, backward, a torch AdamW of its own
    single  ours: all tokens as one batch of one tenant, which has one step to do: the limit

The model has SmolLM2-135M's shape (or another) and random weights, and is made here. Every way runs in
every round, one after another, and the fastest round of each is shown: whatever disturbs it makes it
longer. On a busy machine read ratios. With one thread on a CPU it is CPU time that counts, otherwise
wall time.
Cells are TENANTSxSEQUENCESxTOKENS: 8x1x16 is 8 tenants with one sequence of 16 tokens each.

    python bench/train.py [--shape NAME] [--dtype NAME] [--cells 8x1x16,...] [--rounds N] [--threads N]
                          [--device cpu|cuda] [--quick] [--json]
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from train_ways import (
    DTYPES,
    SHAPES,
    Datums,
    Round,
    Watch,
    Way,
    build_engine,
    load_peft,
    make_model,
    ways_of,
)


class Cell(NamedTuple):
    tenants: int
    sequences: int
    length: int

    @property
    def name(self) -> str:
        return "x".join(map(str, self))

    @property
    def tokens(self) -> int:
        return self.tenants * self.sequences * self.length


CELLS = tuple(
    Cell(tenants, *shape) for shape in ((1, 16), (1, 64), (4, 64), (1, 256)) for tenants in (4, 8, 16)
)
QUICK_CELLS = (Cell(8, 1, 16), Cell(8, 1, 64))


# --- measuring ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """The fastest round of one way in one cell. step_share: of the optimizer in its time."""

    tokens_per_s: float
    step_share: float


def data_of(cell: Cell, vocab: int, seed: int) -> list[Datums]:
    draw = np.random.default_rng(seed)
    shape = (cell.sequences, cell.length)
    return [
        Datums(draw.integers(0, vocab, shape), draw.integers(0, vocab, shape)) for _ in range(cell.tenants)
    ]


def measure_cell(ways: dict[str, Way], cell: Cell, vocab: int, rounds: int) -> dict[str, Found]:
    taken: dict[str, list[Round]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        data = data_of(cell, vocab, number)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(ways[name].run(data))
    fastest = {name: min(found, key=lambda each: each.total_s) for name, found in taken.items()}
    return {
        name: Found(cell.tokens / best.total_s, best.steps_s / best.total_s) for name, best in fastest.items()
    }


def warm_up(ways: dict[str, Way], vocab: int, tenants: int) -> None:
    """Make every adapter's views and moments, and see that ours and PEFT begin with the same loss."""
    data = data_of(Cell(tenants, 1, 16), vocab, 1000)
    ours, theirs = (ways[name].run(data).loss for name in ("fused", "peft"))
    assert abs(ours - theirs) < 1e-3 * theirs, (ours, theirs)
    for name in ("solo", "single"):
        ways[name].run(data)


def matmul_peak(dtype: str, watch: Watch, device: str) -> float:
    """Floating-point operations per second of large square products: the best of several."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    times = []
    for _ in range(8):
        watch.lap()
        left @ right
        times.append(watch.lap())
    return float(2 * size**3 / min(times))


@dataclass(frozen=True, slots=True)
class Report:
    """cells: what each way took in each. peak_share: of the matrix-product peak, in the largest cell."""

    dtype: str
    cells: dict[str, dict[str, Found]]
    peak_tflops: float
    peak_share: float

    def ratios(self, against: str) -> dict[str, float]:
        """How many times as fast as that way fused passes are, by cell."""
        return {
            name: round(found["fused"].tokens_per_s / found[against].tokens_per_s, 3)
            for name, found in self.cells.items()
        }


def measure(options: argparse.Namespace, dtype: str) -> Report:
    cells, device = options.cells, options.device
    tenants = max(cell.tenants for cell in cells)
    with tempfile.TemporaryDirectory(prefix="loractl-bench-") as name:
        directory = Path(name)
        make_model(options.shape, DTYPES[dtype], device, directory / "model")
        engine = build_engine(directory / "model", dtype, device, options.threads, tenants)
        peft = load_peft(engine, directory / "model", directory, DTYPES[dtype], device)
    watch = Watch(device, options.threads)
    ways = ways_of(engine, peft, watch, device)
    vocab = engine.details.vocab_size
    warm_up(ways, vocab, tenants)
    found = {cell.name: measure_cell(ways, cell, vocab, rounds_of(cell, options.rounds)) for cell in cells}
    # 2 per weight forward and 2 on the way back: no weight of the base wants a gradient of its own.
    largest = max(cells, key=lambda cell: cell.tokens)
    achieved = 4 * multiplied_weights(peft) * found[largest.name]["fused"].tokens_per_s
    peak = matmul_peak(dtype, watch, device)
    return Report(dtype, found, peak / 1e12, achieved / peak)


def multiplied_weights(model: PeftModel) -> int:
    """The base's weights without those that are only looked up."""
    base = model.get_base_model()
    looked_up = 0 if base.config.tie_word_embeddings else base.get_input_embeddings().weight.numel()
    return sum(each.numel() for name, each in base.named_parameters() if "lora_" not in name) - looked_up


def rounds_of(cell: Cell, rounds: int) -> int:
    """Long cells wander less."""
    return rounds if cell.tokens < 256 else max(1, round(0.6 * rounds))


# --- showing -----------------------------------------------------------------------------------------


def show(report: Report, options: argparse.Namespace) -> None:
    clock = "CPU time" if options.device == "cpu" and options.threads == 1 else "wall time"
    title = f"{options.shape}, {report.dtype}, {options.device}, {options.threads} threads, {clock}"
    table = Table(title=f"tokens per second (share of the optimizer): {title}")
    table.add_column("cell")
    for heading in ("fused", "solo", "peft", "single", "fused/peft", "fused/solo", "fused/single"):
        table.add_column(heading, justify="right")
    ratios = [report.ratios(way) for way in ("peft", "solo", "single")]
    for name, found in report.cells.items():
        table.add_row(
            name,
            *(
                f"{each.tokens_per_s:,.0f} ({each.step_share:.0%})"
                for each in (found["fused"], found["solo"], found["peft"], found["single"])
            ),
            *(f"{each[name]:.2f}" for each in ratios),
        )
    console = Console(width=132)
    console.print(table)
    console.print(
        f"largest cell, fused: {report.peak_share:.0%} of the matrix-product peak "
        f"({report.peak_tflops:.2f} TFLOP/s), at 4 operations a weight and token",
        highlight=False,
    )


def as_json(reports: Sequence[Report], options: argparse.Namespace) -> str:
    """Ratios are those of the first dtype; all of them stand under `dtypes`."""
    dtypes = {
        report.dtype: {
            "ratios": {way: report.ratios(way) for way in ("peft", "solo", "single")},
            "cells": {
                name: {way: asdict(each) for way, each in found.items()}
                for name, found in report.cells.items()
            },
            "peak_tflops": report.peak_tflops,
            "peak_share": report.peak_share,
        }
        for report in reports
    }
    head = {"shape": options.shape, "device": options.device, "threads": options.threads}
    return json.dumps({"ratios": dtypes[reports[0].dtype]["ratios"], "dtypes": dtypes, **head})


def cells_of(text: str) -> list[Cell]:
    cells = [Cell(*map(int, each.split("x"))) for each in text.split(",")]
    if not all(min(cell) > 0 for cell in cells):
        raise ValueError(text)
    return cells


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--cells", type=cells_of)
    parser.add_argument("--quick", action="store_true", help="few cells and rounds: at most three minutes")
    parser.add_argument("--json", action="store_true", help="one object for programs on standard output")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.cells = options.cells or (QUICK_CELLS if options.quick else CELLS)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    reports = []
    for dtype in DTYPES if options.dtype == "both" else [options.dtype]:
        reports.append(measure(options, dtype))
        if not options.json:
            show(reports[-1], options)
    if options.json:
        print(as_json(reports, options))


if __name__ == "__main__":
    main()
