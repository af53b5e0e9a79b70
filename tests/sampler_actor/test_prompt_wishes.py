"""What may be asked of a prompt and beside samples, decided without an engine; and rows taken apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.errors import InvalidData, InvalidRequest
from loractl.bus.ids import RequestId
from loractl.bus.messages import Sample
from loractl.sampler_actor.engine import Choices, Delta, ScoreWish
from loractl.sampler_actor.facts import ModelFacts
from loractl.sampler_actor.requests import Plan, plan_sample
from loractl.sampler_actor.scoring import EMPTY, first_row, scores_of, uniforms, width
from loractl.sampler_actor.sequences import GrowingSequence

FACTS = ModelFacts(path="", vocab_size=100, context_tokens=20, end_tokens=(7, 8))
SAMPLE = Sample(adapter=None, version=None, prompt=np.array([1, 2, 3]), max_tokens=5)
FULL = np.arange(20)


def planned(**changes: object) -> Plan:
    return plan_sample(replace(SAMPLE, **changes), RequestId("r"), FACTS, fresh_seed=1000)


def targets(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


# --- wishes --------------------------------------------------------------------------------------


def test_a_plain_sample_wishes_nothing_of_its_prompt():
    assert planned().wish is None


def test_each_wish_alone_is_enough_to_score_without_sampling():
    for wish in (
        {"prompt_logprobs": True},
        {"topk_prompt_logprobs": 3},
        {"prompt_targets": targets([5], [-1])},
        {"prompt_alt_tokens": 2},
    ):
        plan = planned(max_tokens=0, **wish)

        assert plan.wish is not None
        assert plan.jobs == ()


def test_targets_and_alternatives_alone_score_no_other_position():
    assert planned(prompt_targets=targets([5], [-1])).wish.last == 0
    assert planned(prompt_alt_tokens=2).wish.last == 0
    assert planned(topk_prompt_logprobs=2).wish.last is None
    assert planned(prompt_logprobs=True, prompt_last_n=2).wish.last == 2


def test_alternatives_take_the_requests_temperature_and_seed():
    wish = planned(prompt_alt_tokens=2, temperature=0.3, seed=-1).wish

    assert (wish.alternatives, wish.temperature, wish.seed) == (2, 0.3, 2**63 - 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs"),
        ({"topk_prompt_logprobs": 101}, "0 to 100"),
        ({"topk_sample_logprobs": -1}, "topk_sample_logprobs"),
        ({"topk_sample_logprobs": 101}, "0 to 100"),
        ({"prompt_alt_tokens": -1}, "prompt_alt_tokens"),
        ({"prompt_alt_tokens": 1025}, "0 to 1024"),
        ({"prompt_targets": targets([1])}, r"each of the 2 tokens.*\[1, 1\]"),
        ({"prompt_targets": targets([1], [2], [3])}, r"\[3, 1\]"),
        ({"prompt_targets": np.array([1, 2])}, r"\[2\]"),
        ({"prompt_targets": targets([-1, -1], [-1, -1])}, "names no token"),
        ({"prompt_targets": targets([1], [100])}, "holds 100"),
        ({"prompt_targets": targets([1], [-2])}, "holds -2"),
        ({"prompt_last_n": 2}, "prompt_last_n"),
        ({"prompt_last_n": 0, "prompt_logprobs": True}, "1 to 2"),
        ({"prompt_last_n": 3, "prompt_logprobs": True}, "1 to 2"),
    ],
    ids=str,
)
def test_a_wish_out_of_range_is_refused_by_name(change, name):
    with pytest.raises(InvalidRequest, match=name):
        planned(**change)


def test_more_than_an_answer_can_hold_is_refused_by_its_numbers():
    large = replace(FACTS, vocab_size=100_000, context_tokens=100_000)
    prompt = np.ones(50_000, np.int64)
    for change in (
        {"prompt": prompt, "topk_prompt_logprobs": 60, "prompt_alt_tokens": 24},
        {"num_samples": 10, "max_tokens": 10_000, "topk_sample_logprobs": 100},
    ):
        with pytest.raises(InvalidRequest, match=r"0000 .*more than"):
            plan_sample(replace(SAMPLE, **change), RequestId("r"), large, fresh_seed=0)


# --- a prompt that fills the context -------------------------------------------------------------


def test_a_full_context_can_be_scored_and_leaves_every_sample_without_room():
    plan = planned(prompt=FULL, prompt_logprobs=True, max_tokens=1, num_samples=3)

    assert (plan.jobs, plan.no_room) == ((), 3)
    assert planned(prompt=FULL, prompt_logprobs=True, max_tokens=0).no_room == 0
    assert planned(prompt=FULL[:19], prompt_logprobs=True).no_room == 0


def test_lengths_that_do_not_fit_are_refused_with_their_numbers():
    with pytest.raises(InvalidData, match=r"sequence length 21 \(20 of the prompt.*exceeds max 20"):
        planned(prompt=FULL)
    with pytest.raises(InvalidData, match="sequence length 21 exceeds max 20"):
        planned(prompt=np.arange(21), prompt_logprobs=True)


def test_end_tokens_are_kept_beside_given_ones_when_asked():
    assert planned(stop_tokens=(3,), keep_end_tokens=True).jobs[0].stop_tokens == (3, 7, 8)
    assert planned(stop_tokens=(3,)).jobs[0].stop_tokens == (3,)


# --- rows ----------------------------------------------------------------------------------------


def test_only_rows_from_the_first_wanted_one_on_are_needed():
    named = targets([-1, -1], [-1, 4], [-1, -1], [2, -1])
    assert first_row(ScoreWish(), 4) == 0
    assert first_row(ScoreWish(last=1), 4) == 3
    assert first_row(ScoreWish(last=0), 4) == 4
    assert first_row(ScoreWish(last=0, targets=named), 4) == 1
    assert first_row(ScoreWish(last=4, targets=named), 4) == 0
    assert first_row(ScoreWish(last=1, alternatives=1), 4) == 0
    assert first_row(ScoreWish(), 0) == 0


def test_rows_are_taken_apart_by_column_and_moved_to_their_positions():
    wish = ScoreWish(last=1, topk=2, targets=targets([5, -1], [-1, 6]), alternatives=1)
    ids = np.arange(2 * width(wish)).reshape(2, -1)

    scores = scores_of(wish, ids, ids.astype(np.float32), cached=4)

    nan = math.nan
    np.testing.assert_array_equal(scores.logprobs, [nan, nan, 6])
    np.testing.assert_array_equal(scores.topk_tokens, [[EMPTY] * 2, [EMPTY] * 2, [7, 8]])
    np.testing.assert_array_equal(scores.topk_logprobs, [[nan] * 2, [nan] * 2, [7, 8]])
    np.testing.assert_array_equal(scores.target_logprobs, [[3, nan], [nan, 10]])
    np.testing.assert_array_equal(scores.alternative_tokens, [[5], [11]])
    assert scores.cached == 4


@pytest.mark.parametrize("draws", [1, 4, 7])
def test_a_rows_draws_do_not_depend_on_which_rows_are_drawn_together(draws):
    whole = uniforms(3, 0, 50, draws)

    np.testing.assert_array_equal(uniforms(3, 20, 10, draws), whole[20:30])
    assert ((whole >= 0) & (whole < 1)).all()
    assert len(np.unique(whole)) == whole.size
    assert (uniforms(4, 0, 50, draws) != whole).all()


# --- choices of a sequence -----------------------------------------------------------------------


class Letters:
    def decode(self, token_ids: list[int], **_: bool) -> str:
        return "".join(map(chr, token_ids))


def test_choices_end_with_the_token_that_completes_a_stop_string():
    sequence = GrowingSequence(Letters(), ("bc",))
    choices = tuple(Choices((i, i + 1), (-0.5, -1.5)) for i in range(4))

    sequence.take(Delta(tokens=tuple(map(ord, "abcd")), logprobs=(-1.0,) * 4, choices=choices, cached=32))

    assert (sequence.reason, sequence.text) == ("stop", "a")
    assert list(sequence.choice_tokens) == [0, 1, 1, 2, 2, 3]
    assert list(sequence.choice_logprobs) == [-0.5, -1.5] * 3
    assert sequence.cached == 32
