"""The grouped products that CUDA takes are those of the loop over adapters."""

import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import Lab, begin, spec
from loractl.trainer_actor.bank import Row
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.linears import Linear
from loractl.trainer_actor.lora_grouped import GroupedPass
from loractl.trainer_actor.lora_pass import LoraPass, LoraSegment, SegmentedPass
from loractl.trainer_actor.naming import named_parts
from loractl.trainer_actor.row_views import GradientRow, RowViews

# Geometry by geometry, as the engine sorts them; two runs of one adapter among them.
LORAS = [
    spec(rank=4, seed=1),
    spec(rank=7, seed=2),
    spec(rank=7, seed=2),
    spec(rank=16, seed=3, train_mlp=False),
    spec(rank=1, seed=4, train_attn=False, train_unembed=False),
    spec(rank=3, seed=5, train_attn=False, train_unembed=False),
    spec(rank=8, seed=6, train_mlp=False, train_attn=False),
]
STOPS = [16, 23, 24, 40, 49, 60, 64]
FORWARD_ONLY = 5


def segments(rows: list[Row], scratch: list[GradientRow]) -> list[LoraSegment]:
    return [
        LoraSegment(
            start=start,
            stop=stop,
            scale=row.lora.alpha / row.lora.rank,
            weights=row.views,
            gradients=None if index == FORWARD_ONLY else gradients,
        )
        for index, (start, stop, row, gradients) in enumerate(
            zip([0, *STOPS[:-1]], STOPS, rows, scratch, strict=True)
        )
    ]


def scratch_rows(rows: list[Row]) -> list[GradientRow]:
    """Memory that holds anything."""
    return [GradientRow(RowViews(torch.full((row.layout.size,), torch.nan), row.layout)) for row in rows]


def rows_of(engine: TrainEngine, dtype: torch.dtype) -> list[Row]:
    """In the type that CUDA takes for a model of this one."""
    rows = []
    for lora in LORAS:
        begin(engine, 0, lora)
        rows.append(Row(lora, engine.bank.layouts.of(lora), dtype, engine.bank.memory))
        rows[-1].main.copy_(engine.bank.row(0).main)
        rows[-1].round_weights()
    return rows


def through(lora: LoraPass, linears: list[Linear], dtype: torch.dtype) -> list[torch.Tensor]:
    """What a pass adds at every linear, and to the gradients of its inputs."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for linear in linears:
        x, y, dy = (
            torch.randn(64, size, generator=draw).to(dtype)
            for size in (linear.inputs, linear.outputs, linear.outputs)
        )
        dx = torch.randn(x.shape, generator=draw).to(dtype)
        saved = lora.add(linear, x, y)
        lora.backward(linear, x, saved, dy, dx)
        found += [y, dx]
    lora.finish()
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("passes", [1, 2])
def test_grouped_products_are_the_segment_loops(
    lab: Lab, dtype: torch.dtype, tolerance: float, passes: int
) -> None:
    engine = lab.engine(dtype=str(dtype).removeprefix("torch."))
    rows = rows_of(engine, dtype)
    linears = list(engine._layouts.linears[:-1])
    into = {kind: scratch_rows(rows) for kind in (SegmentedPass, GroupedPass)}

    found = {
        kind: [each for _ in range(passes) for each in through(kind(segments(rows, scratch)), linears, dtype)]
        for kind, scratch in into.items()
    }

    for one, other in zip(found[SegmentedPass], found[GroupedPass], strict=True):
        assert (one - other).norm() <= tolerance * one.norm()
    for index, row in enumerate(rows):
        if index == FORWARD_ONLY:
            continue
        looped, grouped = (into[kind][index].finish() for kind in (SegmentedPass, GroupedPass))
        assert (looped - grouped).norm() <= tolerance * looped.norm()
        used = torch.zeros(row.layout.size, dtype=torch.bool)
        for _, part in named_parts(row.layout, row.lora.rank, used):
            part.fill_(True)
        assert not grouped[~used].any()
        # The last adapter is on the unembedding alone, which has no grouped products.
        assert bool(grouped.any()) == (index != 6)
