"""How a pass is shared out, as data."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from loractl.trainer_actor.compositions import RunShape
from loractl.trainer_actor.members import filler
from loractl.trainer_actor.ranks.parts import parts_of
from loractl.trainer_actor.ranks.split import Part, cuts, placed

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=12)
REPLICAS = st.integers(1, 5)


@given(LENGTHS, REPLICAS)
def test_every_datum_is_in_one_part_and_no_part_is_empty(lengths: list[int], most: int) -> None:
    counts = cuts(lengths, most)

    assert sum(counts) == len(lengths)
    assert len(counts) == min(most, len(lengths))
    assert min(counts) >= 1


@given(LENGTHS, REPLICAS)
def test_parts_are_as_long_as_their_share_but_for_a_datum(lengths: list[int], most: int) -> None:
    counts = cuts(lengths, most)

    starts = [sum(counts[:number]) for number in range(len(counts))]
    sizes = [sum(lengths[start : start + count]) for start, count in zip(starts, counts, strict=True)]
    assert max(sizes) <= sum(lengths) / len(counts) + max(lengths)


def test_equal_datums_are_shared_equally() -> None:
    assert cuts([10] * 6, 3) == [2, 2, 2]
    assert cuts([10] * 3, 2) == [1, 2]
    assert cuts([50, 10, 10, 10, 10, 10], 2) == [1, 5]
    assert cuts([7], 4) == [1]


@given(st.lists(LENGTHS, min_size=1, max_size=6), REPLICAS)
def test_each_part_runs_once_and_those_of_a_member_side_by_side(
    members: list[list[int]], replicas: int
) -> None:
    sizes = [mine[:replicas] for mine in members]

    shares = placed(sizes, replicas)

    assert len(shares) == replicas
    everything = [Part(member, number) for member, mine in enumerate(sizes) for number in range(len(mine))]
    assert sorted(part for share in shares for part in share) == everything
    assert all(share == sorted(share) for share in shares)
    assert all(len({part.member for part in share}) == len(share) for share in shares)


def test_single_datums_go_where_the_least_is() -> None:
    assert placed([[30], [100], [40], [30]], 2) == [[Part(1, 0)], [Part(0, 0), Part(2, 0), Part(3, 0)]]
    assert placed([[16]], 3) == [[Part(0, 0)], [], []]


def test_a_filler_is_cut_as_what_it_stands_for() -> None:
    noted = RunShape(
        lengths=(20, 20, 30), group=0, targets=1, backward=True, whole=False, kept=(16, 4, 1, 15, 9)
    )
    whole = RunShape(lengths=(20, 30), group=0, targets=1, backward=True, whole=True, kept=(12, 7))

    parts = parts_of(filler(noted, None, torch.device("cpu")), [1, 2], 16)
    others = parts_of(filler(whole, None, torch.device("cpu")), [1, 1], 16)

    assert [(each.filler.lengths, each.filler.kept) for each in parts if each.filler] == [
        ((20,), (16, 4)),
        ((20, 30), (1, 15, 9)),
    ]
    assert [each.filler.kept for each in others if each.filler] == [(12,), (7,)]
    assert [each.rows.lengths for each in parts] == [[20], [20, 30]]
