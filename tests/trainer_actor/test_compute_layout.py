"""Rows and packed passes on paper: where everything lies, and what it costs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.compute_lab import spec
from loractl.trainer_actor.linears import ModelShape
from loractl.trainer_actor.packing import pack, padded_length
from loractl.trainer_actor.row_layout import RowLayouts, active_sections, padded_rank

SHAPE = ModelShape(layers=3, hidden=64, ffn=96, heads=6, kv_heads=2, head_dim=16, vocab=320)


LORAS = [
    spec(rank=rank, train_attn=attn, train_mlp=mlp, train_unembed=unembed)
    for rank in (1, 4, 8, 9, 16, 33)
    for attn, mlp, unembed in itertools.product([True, False], repeat=3)
    if attn or mlp or unembed
]


@pytest.mark.parametrize("lora", LORAS, ids=str)
def test_an_adapters_matrices_fill_its_row_and_begin_at_16_bytes(lora: LoraSpec) -> None:
    layout = RowLayouts(SHAPE).of(lora)

    spans = []
    for site in layout.sites:
        a_size = layout.rank * site.linear.inputs * len(site.linear.projections)
        spans.append((site.a_offset, a_size))
        for offset, projection in zip(site.b_offsets, site.linear.projections, strict=True):
            spans.append((offset, layout.rank * projection.outputs))

    assert 0 <= layout.rank - lora.rank < 8
    assert {site.linear.section for site in layout.sites} == set(active_sections(lora))
    assert all(offset % 8 == 0 for offset, _ in spans)
    assert [offset for offset, _ in spans] == [0, *(offset + size for offset, size in spans)][:-1]
    assert sum(spans[-1]) == layout.size
    assert layout.size * lora.rank == layout.parameters(lora.rank) * layout.rank


def test_adapters_of_one_geometry_share_their_layout_and_all_share_the_linears() -> None:
    layouts = RowLayouts(SHAPE)
    one, same, other = (layouts.of(spec(rank=rank, seed=rank)) for rank in (5, 8, 9))

    assert one is same
    assert other is not one
    for linear in layouts.linears:
        assert sum(each.outputs for each in linear.projections) == linear.outputs
        for layout in (one, other):
            site = layout.site(linear)
            assert site is not None
            assert site.linear is linear


def test_a_row_costs_20_bytes_an_element_in_float32_and_22_in_bfloat16_and_16_elsewhere() -> None:
    layout = RowLayouts(SHAPE).of(spec())

    assert layout.device_row_bytes(4) == 20 * layout.size
    assert layout.device_row_bytes(2) == 22 * layout.size
    assert layout.host_state_bytes() == 16 * layout.size


def test_mixed_ranks_and_targets_waste_only_what_rounding_up_to_8_takes() -> None:
    layouts = RowLayouts(SHAPE)
    ranks = (4, 6, 8, 12, 16, 20, 32, 64)
    targets = ({"train_mlp": False}, {"train_attn": False}, {}, {"train_unembed": False})
    loras = [spec(rank=rank, **chosen) for rank in ranks for chosen in targets]

    taken = sum(layouts.of(lora).size for lora in loras)
    used = sum(layouts.of(lora).parameters(lora.rank) for lora in loras)

    rounded = [padded_rank(rank) for rank in ranks]
    assert taken / used == pytest.approx(sum(rounded) / sum(ranks))
    assert 1 - used / taken < 0.1
    exact = [lora for lora in loras if lora.rank % 8 == 0]
    assert sum(layouts.of(lora).size for lora in exact) == sum(
        layouts.of(lora).parameters(lora.rank) for lora in exact
    )


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_a_padded_length_is_near(length: int) -> None:
    padded = padded_length(length)

    assert padded % 8 == 0
    assert length <= padded <= max(length + 7, length * 9 / 8)
    assert padded_length(padded) == padded


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=9))
def test_every_token_has_its_place_and_padding_is_its_own_sequences(lengths: list[int]) -> None:
    packing = pack(lengths, torch.device("cpu"))
    owner = np.repeat(np.arange(len(lengths)), lengths)

    assert packing.positions.tolist() == [i for length in lengths for i in range(length)]
    assert sum(count for count, _ in packing.batches) == len(lengths)
    if packing.source is None or packing.place is None:
        assert set(lengths) == {packing.batches[0][1]}
        return
    assert packing.source[packing.place].tolist() == list(range(sum(lengths)))
    start = 0
    for count, size in packing.batches:
        for row in packing.source[start : start + count * size].view(count, size).tolist():
            assert len(set(owner[row])) == 1
            assert padded_length(lengths[owner[row[0]]]) == size
        start += count * size
