"""An operation that runs again in passes of the shapes that it ran in before gives the same bits, whoever
is there: where neighbours change bits, what else was in its passes is noted with its outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import VOCAB, Lab, batch, begin, spec, state_in
from loractl.tests.trainer_actor.test_compute_pieces import NoRoom
from loractl.trainer_actor import compositions
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.pass_runner import fitting
from loractl.trainer_actor.passes import PartResult, PassPart

LORAS = [
    spec(rank=4, seed=1),
    spec(rank=12, seed=2, train_mlp=False, train_unembed=False),
    spec(rank=8, seed=3, train_attn=False, train_unembed=False),
    spec(rank=4, seed=4),
]
PASS_TOKENS = 256


def several_targets(part: PassPart, count: int) -> PassPart:
    draw = np.random.default_rng(count)
    shape = (len(part.tokens), count)
    return replace(
        part, targets=draw.integers(0, VOCAB, shape), weights=draw.random(shape).astype(np.float32)
    )


# Masks, several targets, a whole-sequence loss, one that computes no gradients, and two of one adapter.
PARTS = [
    several_targets(batch(0, [20, 9, 30, 4, 11, 40, 170, 33], slot=0, lora=LORAS[0]), 3),
    batch(1, [25, 25, 3, 60, 150, 44], slot=1, lora=LORAS[1], loss="ppo"),
    batch(3, [17, 5], slot=3, lora=LORAS[3], backward=False),
    batch(2, [30, 16, 8, 40], slot=2, lora=LORAS[2], loss="gspo"),
    batch(4, [12, 20, 9], slot=1, lora=LORAS[1], loss="importance_sampling"),
    batch(5, [3], slot=3, lora=LORAS[3]),
]


@dataclass(frozen=True)
class End:
    """What an operation answered, and its adapter's gradients behind it."""

    result: PartResult
    gradients: torch.Tensor | None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, End)
        mine, others = self.result, other.result
        same = all(
            getattr(mine, name).tobytes() == getattr(others, name).tobytes()
            for name in ("logprobs", "loss_terms", "composition")
        )
        return same and mine.metrics == others.metrics and _equal(self.gradients, other.gradients)


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


@pytest.fixture(params=["float32-2", "bfloat16-1", "bfloat16-2", "bfloat16-2-deterministic"])
def engine(lab: Lab, request: pytest.FixtureRequest) -> Iterator[TrainEngine]:
    dtype, threads, *mode = request.param.split("-")
    before = torch.get_num_threads()
    settings = {"deterministic": True} if mode else {}
    engine = lab.engine("wide", dtype=dtype, pass_tokens=PASS_TOKENS, threads=int(threads), **settings)
    # Of the whole process, and engines are built once.
    torch.set_num_threads(int(threads))
    torch.use_deterministic_algorithms(bool(mode))
    yield engine
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def prepare(engine: TrainEngine) -> None:
    for slot, lora in enumerate(LORAS):
        begin(engine, slot, lora)


def run(engine: TrainEngine, parts: Sequence[PassPart]) -> list[End]:
    """Together, as far as they fit in a pass; those of one slot one after the other."""
    runs = [engine.begin(part) for part in parts]
    ends: dict[int, End] = {}
    while waiting := [each for each in runs if each.outcome is None]:
        slots = [each.part.slot for each in waiting]
        heads = [each for place, each in enumerate(waiting) if each.part.slot not in slots[:place]]
        chosen = fitting(heads, PASS_TOKENS)
        engine.run(chosen)
        for each in chosen:
            if isinstance(each.outcome, PartResult):
                state = state_in(engine, each.part.slot)
                ends[id(each)] = End(each.outcome, state.gradients)
    return [ends[id(each)] for each in runs]


def again(part: PassPart, end: End) -> PassPart:
    """The same operation, in the passes that are noted with its outcome."""
    assert end.result.composition.size
    return replace(part, seats=compositions.seats(end.result.composition))


def test_alone_in_the_noted_passes_it_has_the_same_bits(engine: TrainEngine) -> None:
    prepare(engine)
    together = run(engine, PARTS)
    prepare(engine)

    alone = [run(engine, [again(part, end)])[0] for part, end in zip(PARTS, together, strict=True)]

    assert alone == together


def test_some_of_those_who_were_together_find_each_other_again(engine: TrainEngine) -> None:
    prepare(engine)
    together = run(engine, PARTS)
    prepare(engine)
    some = (0, 2, 3)

    ends = run(engine, [again(PARTS[index], together[index]) for index in some])

    assert ends == [together[index] for index in some]


def test_two_that_stand_for_the_same_one_each_have_its_bits(engine: TrainEngine) -> None:
    prepare(engine)
    first = run(engine, [PARTS[0], PARTS[1]])
    prepare(engine)
    begin(engine, 3, LORAS[0])

    twins = run(engine, [again(replace(PARTS[0], slot=slot), first[0]) for slot in (0, 3)])

    assert twins == [first[0], first[0]]


def test_a_noted_pass_without_room_is_not_insisted_on(engine: TrainEngine) -> None:
    prepare(engine)
    together = run(engine, PARTS)
    prepare(engine)
    most = max(seat.shape.positions for seat in again(PARTS[0], together[0]).seats)

    with NoRoom(rows=most, after=3) as memory:
        (end,) = run(engine, [again(PARTS[0], together[0])])

    assert memory.times == 1
    np.testing.assert_allclose(end.result.logprobs, together[0].result.logprobs, atol=0.2)
    assert {len(seat.shape.runs) for seat in compositions.seats(end.result.composition)} == {1}


def without_note(end: End) -> PartResult:
    return replace(end.result, composition=np.zeros(0, dtype=np.uint8))


def test_without_the_note_bits_may_differ(engine: TrainEngine) -> None:
    prepare(engine)
    together = run(engine, PARTS)
    prepare(engine)

    alone = [run(engine, [part])[0] for part in PARTS]

    same = [
        replace(mine, result=without_note(mine)) == replace(other, result=without_note(other))
        for mine, other in zip(alone, together, strict=True)
    ]
    if all(same):
        pytest.skip("on this machine products of these sizes give the same bits in every pass")
    for mine, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(mine.result.logprobs, other.result.logprobs, atol=0.2)


def test_what_changes_nothing_is_not_noted(lab: Lab) -> None:
    engine = lab.engine("wide", dtype="float32", pass_tokens=PASS_TOKENS)
    torch.set_num_threads(1)
    prepare(engine)

    ends = run(engine, PARTS)

    assert not any(end.result.composition.size for end in ends)
