"""Routes, stop strings, turns, and what a Sample must look like: each decided without an engine."""

import math
from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from loractl.bus.errors import InvalidData, InvalidRequest, PublishFailed
from loractl.bus.ids import AdapterId, RequestId, TenantId
from loractl.bus.messages import LoraSpec, Sample
from loractl.sampler_actor.facts import ModelFacts
from loractl.sampler_actor.requests import plan_sample
from loractl.sampler_actor.routing import route_base, route_version
from loractl.sampler_actor.stops import StopStrings
from loractl.sampler_actor.turns import Turns

PLAIN = LoraSpec(rank=4, alpha=8, seed=0)
UNEMBED = replace(PLAIN, train_unembed=True)
FACTS = ModelFacts(path="", vocab_size=100, context_tokens=20, end_tokens=(7, 8))
SAMPLE = Sample(adapter=None, version=None, prompt=np.array([1, 2, 3]), max_tokens=5)
ALICE, BOB = TenantId("alice"), TenantId("bob")


# --- routing -------------------------------------------------------------------------------------


def test_vllm_serves_what_it_can_and_the_embedded_engine_the_rest():
    assert route_version(PLAIN, "auto", vllm_missing="").engine == "vllm"
    assert route_version(UNEMBED, "auto", vllm_missing="").engine == "torch"
    assert "unembedding" in route_version(UNEMBED, "auto", vllm_missing="").reason


def test_without_vllm_the_embedded_engine_serves_and_says_why():
    route = route_version(PLAIN, "auto", vllm_missing="vllm is not installed")

    assert (route.engine, route.reason) == ("torch", "vllm is not installed")


def test_a_setting_decides():
    assert route_base("torch", vllm_missing="").engine == "torch"
    assert route_base("vllm", vllm_missing="").engine == "vllm"
    with pytest.raises(PublishFailed, match="unembedding"):
        route_version(UNEMBED, "vllm", vllm_missing="")


# --- stop strings --------------------------------------------------------------------------------


def watch(strings: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    stops = StopStrings(strings)
    shown = ""
    for piece in pieces:
        seen = stops.feed(piece)
        shown += seen.text
        if seen.hit:
            return shown, True
    return shown + stops.finish(), False


def test_text_ends_before_the_stop_string():
    assert watch(("END",), ["one EN", "D two"]) == ("one ", True)


def test_a_beginning_that_comes_to_nothing_is_shown():
    assert watch(("END",), ["one EN", "OUGH"]) == ("one ENOUGH", False)


def test_text_that_cannot_begin_a_stop_string_is_not_held_back():
    assert StopStrings(("END",)).feed("one two").text == "one two"


short = st.text("ab", min_size=1, max_size=4)


@given(st.lists(short, max_size=3), st.text("ab", max_size=12), st.lists(st.integers(0, 12), max_size=5))
def test_the_outcome_does_not_depend_on_where_pieces_end(strings, text, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]

    outcome = watch(tuple(strings), pieces)

    assert outcome == watch(tuple(strings), list(text))
    if not any(s in text for s in strings):
        assert outcome == (text, False)


# --- turns ---------------------------------------------------------------------------------------


def test_a_light_tenant_is_next_however_much_another_has_queued():
    turns: Turns[str] = Turns(places=1)
    assert turns.enter(ALICE, "a0") == ["a0"]
    for i in range(1, 100):
        turns.enter(ALICE, f"a{i}")
    turns.enter(BOB, "b0")

    assert turns.leave("a0") == ["a1"]
    assert turns.leave("a1") == ["b0"]


def test_one_who_gives_up_waiting_takes_no_turn():
    turns: Turns[str] = Turns(places=1)
    turns.enter(ALICE, "a0")
    turns.enter(ALICE, "a1")
    turns.enter(ALICE, "a2")
    turns.leave("a1")

    assert turns.leave("a0") == ["a2"]


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.booleans()), max_size=30))
def test_places_are_never_exceeded_and_everybody_gets_a_turn(places, arrivals):
    turns: Turns[int] = Turns(places)
    running: list[int] = []
    started: list[int] = []
    for who, (tenant, someone_leaves) in enumerate(arrivals):
        granted = turns.enter(tenant, who)
        if someone_leaves and running:
            granted += turns.leave(running.pop(0))
        running += granted
        started += granted
        assert len(running) <= places

    while running:
        granted = turns.leave(running.pop(0))
        running += granted
        started += granted
    assert sorted(started) == list(range(len(arrivals)))
    for tenant in (ALICE, BOB):
        own = [who for who in started if arrivals[who][0] == tenant]
        assert own == sorted(own), "first come, first served within a tenant"


# --- samples -------------------------------------------------------------------------------------


def planned(sample: Sample):
    return plan_sample(sample, RequestId("r"), FACTS, fresh_seed=1000)


def test_sample_i_uses_seed_plus_i():
    jobs = planned(replace(SAMPLE, seed=5, num_samples=3)).jobs

    assert [job.seed for job in jobs] == [5, 6, 7]
    assert len({job.key for job in jobs}) == 3


def test_without_a_seed_a_fresh_one_is_used():
    assert planned(SAMPLE).jobs[0].seed == 1000


def test_the_largest_seed_still_has_a_successor():
    seeds = [job.seed for job in planned(replace(SAMPLE, seed=2**63 - 1, num_samples=2)).jobs]

    assert seeds == [2**63 - 1, 0]


def test_an_answer_is_cut_to_what_the_context_leaves():
    assert planned(replace(SAMPLE, max_tokens=1000)).jobs[0].max_tokens == 17


def test_no_stop_tokens_means_the_models_own_and_an_empty_list_none():
    assert planned(SAMPLE).jobs[0].stop_tokens == (7, 8)
    assert planned(replace(SAMPLE, stop_tokens=())).jobs[0].stop_tokens == ()
    assert planned(replace(SAMPLE, stop_tokens=(3,))).jobs[0].stop_tokens == (3,)


def test_a_prompt_can_be_scored_without_sampling():
    plan = planned(replace(SAMPLE, max_tokens=0, prompt_logprobs=True))

    assert plan.jobs == ()
    assert plan.wish is not None
    assert (plan.prompt_logprobs, plan.no_room) == (True, 0)


@pytest.mark.parametrize(
    "prompt", [[], [[1, 2]], [1, 100], [-1], list(range(20))], ids=["empty", "2d", "high", "negative", "long"]
)
def test_a_prompt_that_the_model_cannot_take_is_refused(prompt):
    with pytest.raises(InvalidData):
        planned(replace(SAMPLE, prompt=np.array(prompt, dtype=np.int64)))


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"max_tokens": -1, "prompt_logprobs": True},
        {"temperature": -1.0},
        {"temperature": 0.001},
        {"temperature": 2.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"num_samples": 0},
        {"num_samples": 1025},
        {"stop_tokens": (100,)},
        {"stop_tokens": (1,) * 65},
        {"stop_strings": ("",)},
        {"adapter": AdapterId("ad-1"), "version": None},
    ],
    ids=str,
)
def test_a_field_out_of_range_is_refused_by_name(change):
    with pytest.raises(InvalidRequest):
        planned(replace(SAMPLE, **change))
