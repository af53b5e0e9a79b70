"""Who runs in a step of the embedded engine, decided without an engine."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.ids import AdapterId
from loractl.sampler_actor.engine import VersionKey
from loractl.sampler_actor.torch_plan import Sequence, StepLimits, plan_step, row_tokens

ROOMY = StepLimits(step_tokens=100, versions=4, cache_tokens=10_000)
V1, V2, V3 = (VersionKey(AdapterId(f"ad-{i}"), 1) for i in range(3))


def sequence(key: str, tokens: int, *, cached: int = 0, version: VersionKey | None = None) -> Sequence:
    numbers = [1000 * ord(key[0]) + i for i in range(tokens)]
    return Sequence(key=key, version=version, tokens=numbers, cached=cached)


def chunks_of(plan) -> list[tuple[str, int]]:
    return [(chunk.sequence.key, chunk.count) for chunk in plan.chunks]


def test_newcomers_join_whoever_answers():
    plan = plan_step([sequence("a", 10, cached=9)], [sequence("b", 5)], ROOMY)

    assert chunks_of(plan) == [("a", 1), ("b", 5)]


def test_a_long_prompt_takes_what_answers_leave_of_the_step():
    running = [sequence("a", 10, cached=9), sequence("b", 300, cached=40)]

    plan = plan_step(running, [sequence("c", 30)], ROOMY)

    assert chunks_of(plan) == [("a", 1), ("b", 99)]


def test_everyone_who_answers_goes_on_even_when_they_are_more_than_a_step_holds():
    running = [sequence(name, 10, cached=9) for name in "abcde"]

    plan = plan_step(running, [], replace(ROOMY, step_tokens=2))

    assert len(plan.chunks) == 5


def test_a_step_mixes_no_more_versions_than_allowed_and_the_line_is_kept():
    limits = replace(ROOMY, versions=2)
    waiting = [sequence("c", 4, version=V3), sequence("d", 4, version=V1)]

    plan = plan_step(
        [sequence("a", 9, cached=8, version=V1), sequence("b", 9, cached=8, version=V2)], waiting, limits
    )

    assert plan.admitted == ()


def test_the_base_model_is_no_version():
    limits = replace(ROOMY, versions=1)

    plan = plan_step([sequence("a", 9, cached=8, version=V1)], [sequence("b", 4)], limits)

    assert len(plan.admitted) == 1


def test_nobody_joins_when_the_cache_is_full():
    limits = replace(ROOMY, cache_tokens=128 + 64)

    plan = plan_step([sequence("a", 100, cached=99)], [sequence("b", 65), sequence("c", 5)], limits)

    assert plan.admitted == ()
    assert plan.preempted == ()


def test_a_lone_sequence_runs_however_large_it_is():
    plan = plan_step([], [sequence("a", 80)], replace(ROOMY, cache_tokens=10))

    assert chunks_of(plan) == [("a", 80)]


def test_the_newest_gives_way_when_others_grow():
    running = [sequence(name, 65, cached=64) for name in "abc"]

    plan = plan_step(running, [sequence("d", 3)], replace(ROOMY, cache_tokens=256))

    assert [s.key for s in plan.preempted] == ["c"]
    assert plan.admitted == ()
    assert chunks_of(plan) == [("a", 1), ("b", 1)]


def test_a_known_prefix_of_the_same_version_is_copied():
    donor = sequence("a", 60, cached=59, version=V1)
    newcomer = Sequence(key="b", version=V1, tokens=donor.tokens[:50])

    (admission,) = plan_step([donor], [newcomer], ROOMY).admitted

    assert (admission.donor, admission.shared) == (donor, 49)


@pytest.mark.parametrize("version", [None, V2])
def test_a_prefix_of_another_version_is_never_copied(version):
    donor = sequence("a", 60, cached=59, version=V1)
    newcomer = Sequence(key="b", version=version, tokens=donor.tokens[:50])

    (admission,) = plan_step([donor], [newcomer], ROOMY).admitted

    assert admission.donor is None


@pytest.mark.parametrize(("wanted_from", "shared"), [(0, 0), (40, 40), (49, 49)])
def test_positions_whose_logits_are_wanted_are_computed_anew(wanted_from, shared):
    donor = sequence("a", 60, cached=59)
    newcomer = Sequence(key="b", version=None, tokens=donor.tokens[:50], wanted_from=wanted_from)

    (admission,) = plan_step([donor], [newcomer], ROOMY).admitted

    assert admission.shared == shared


def test_equal_prompts_that_come_together_are_computed_once():
    first = sequence("a", 60)
    second = Sequence(key="b", version=None, tokens=list(first.tokens))

    plan = plan_step([], [first, second], ROOMY)
    assert [a.sequence.key for a in plan.admitted] == ["a"]

    first.cached = 60
    (admission,) = plan_step([first], [second], ROOMY).admitted
    assert (admission.donor, admission.shared) == (first, 59)


def test_a_row_wastes_at_most_half_of_itself():
    assert [row_tokens(n) for n in (1, 64, 65, 128, 129)] == [64, 64, 128, 128, 256]


job_shapes = st.tuples(
    st.integers(1, 300),  # prompt tokens
    st.integers(1, 120),  # tokens to sample
    st.sampled_from([None, V1, V2, V3]),
    st.integers(0, 2),  # which of three texts the prompt begins
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(job_shapes, min_size=1, max_size=12),
    st.builds(
        StepLimits,
        step_tokens=st.integers(1, 64),
        versions=st.integers(1, 3),
        cache_tokens=st.integers(64, 2000),
    ),
)
def test_everyone_finishes_within_every_limit(shapes, limits):
    waiting = [
        Sequence(key=str(i), version=v, tokens=[1000 * text + t for t in range(prompt)])
        for i, (prompt, _, v, text) in enumerate(shapes)
    ]
    goals = {s.key: len(s.tokens) + shapes[int(s.key)][1] for s in waiting}
    running: list[Sequence] = []

    for _ in range(60_000):
        if not running and not waiting:
            return
        plan = plan_step(running, waiting, limits)
        for s in plan.preempted:
            running.remove(s)
            s.cached = 0
        waiting[:0] = plan.preempted
        for admission in plan.admitted:
            assert admission.sequence is waiting.pop(0)
            admission.sequence.cached = admission.shared
            running.append(admission.sequence)
        _check_and_run(plan, running, limits)
        running = [s for s in running if len(s.tokens) < goals[s.key]]
    pytest.fail("somebody never finished")


def _check_and_run(plan, running, limits) -> None:
    assert plan.chunks, "a step that does nothing"
    assert len({s.version for s in running} - {None}) <= limits.versions
    assert len(running) == 1 or sum(row_tokens(len(s.tokens)) for s in running) <= limits.cache_tokens
    answering = sum(chunk.count == 1 for chunk in plan.chunks)
    assert sum(chunk.count for chunk in plan.chunks) <= max(limits.step_tokens, answering)
    for chunk in plan.chunks:
        s = chunk.sequence
        assert s in running
        s.cached += chunk.count
        assert s.cached <= len(s.tokens)
        if s.cached == len(s.tokens):
            s.tokens.append(-1)
