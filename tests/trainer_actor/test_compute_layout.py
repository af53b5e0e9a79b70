"""Rows and packed passes on paper: where everything lies, and what it costs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.tests.trainer_actor.compute_lab import spec
from loractl.trainer_actor.packing import pack, padded_length
from loractl.trainer_actor.row_layout import ModelShape, row_layout

SHAPE = ModelShape(layers=3, hidden=64, ffn=96, heads=6, kv_heads=2, head_dim=16, vocab=320)


@settings(deadline=None)
@given(st.integers(1, 40))
def test_matrices_fill_the_row_and_begin_at_16_bytes(max_rank: int) -> None:
    layout = row_layout(SHAPE, max_rank)

    spans = []
    for site in layout.sites:
        for projection in site.projections:
            spans.append((projection.a_offset, layout.rank * projection.inputs))
            spans.append((projection.b_offset, layout.rank * projection.outputs))

    assert layout.rank % 8 == 0
    assert 0 <= layout.rank - max_rank < 8
    assert all(offset % 8 == 0 for offset, _ in spans)
    ends = [0, *(offset + size for offset, size in sorted(spans))]
    assert [offset for offset, _ in sorted(spans)] == ends[:-1]
    assert ends[-1] == layout.size


def test_projections_of_a_site_have_their_a_side_by_side_and_share_the_outputs() -> None:
    for site in row_layout(SHAPE, 8).sites:
        step = 8 * site.inputs
        assert [each.a_offset for each in site.projections] == [
            site.a_offset + index * step for index in range(len(site.projections))
        ]
        assert sum(each.outputs for each in site.projections) == site.outputs


@pytest.mark.parametrize(
    "flags", [flags for flags in itertools.product([True, False], repeat=3) if any(flags)]
)
def test_active_ranges_hold_the_adapters_matrices_and_no_others(flags: tuple[bool, bool, bool]) -> None:
    lora = spec(rank=5, train_attn=flags[0], train_mlp=flags[1], train_unembed=flags[2])
    layout = row_layout(SHAPE, 16)

    ranges = layout.ranges(lora)

    inside = sum(16 * (each.inputs + each.outputs) for each in layout.projections(lora))
    assert layout.active_size(lora) == sum(stop - start for start, stop in ranges) == inside
    assert len(ranges) == (2 if flags == (True, False, True) else 1)
    assert layout.host_state_bytes(lora) == 16 * inside
    assert layout.parameters(lora) * 16 == inside * 5


def test_a_device_row_costs_16_bytes_an_element_in_float32_and_18_in_bfloat16() -> None:
    layout = row_layout(SHAPE, 8)

    assert layout.device_row_bytes(4) == 16 * layout.size
    assert layout.device_row_bytes(2) == 18 * layout.size


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
