"""Datums and batches: positions line up, and a batch's loss is the mean over its trained tokens."""

import numpy as np
import pytest
from loractl.bus.errors import InvalidData
from loractl.client.datums import Batch, digest_of, pack, sampled_datum, supervised_datum


def test_each_position_predicts_the_next_token_and_only_marked_ones_count():
    datum = supervised_datum([5, 6, 7, 8], [False, False, True, True])

    assert datum.tokens.tolist() == [5, 6, 7]
    assert datum.targets.tolist() == [6, 7, 8]
    assert datum.weights.tolist() == [0, 1, 1]


def test_a_sampled_datum_counts_only_what_was_sampled():
    datum = sampled_datum([1, 2], [3, 4], [-0.5, -1.5], [2.0, 3.0])

    assert datum.tokens.tolist() == [1, 2, 3]
    assert datum.targets.tolist() == [2, 3, 4]
    assert datum.weights.tolist() == [0, 1, 1]
    assert datum.old_logprobs.tolist() == [0, -0.5, -1.5]
    assert datum.advantages.tolist() == [0, 2, 3]


def test_the_weights_of_a_batch_sum_to_one():
    batch = Batch((supervised_datum([1, 2, 3], [False, True, True]), supervised_datum([4, 5], [True, True])))

    (packed,) = batch.operations("cross_entropy")

    assert packed.lengths.tolist() == [2, 1]
    assert packed.weights.sum() == pytest.approx(1.0)


def test_policy_losses_are_scaled_through_their_advantages():
    batch = Batch((sampled_datum([1], [2, 3], [-1, -1], [4.0, 8.0]),))

    (packed,) = batch.operations("ppo")

    assert packed.advantages.tolist() == [2.0, 4.0]
    assert packed.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("loss", "settings"),
    [("cispo", {}), ("gspo", {}), ("dro", {"beta": 0.025}), ("stable_reinforce", {"kl_coeff": 0.005})],
)
def test_a_penalty_is_scaled_with_the_advantages_beside_it(loss, settings):
    datum = sampled_datum([1], [2, 3], [-1, -1], [4.0, 8.0])

    (packed,) = Batch((datum,)).operations(loss)

    assert packed.advantages.tolist() == [2.0, 4.0]
    assert packed.loss_config == pytest.approx(settings)
    assert pack([datum], loss).loss_config == {}


def test_a_large_batch_travels_as_several_operations_in_order():
    batch = Batch(tuple(supervised_datum([i] * 5, [True] * 5) for i in range(5)))

    operations = list(batch.operations("cross_entropy", limit=8))

    assert [len(o.lengths) for o in operations] == [2, 2, 1]
    assert np.concatenate([o.tokens for o in operations]).tolist() == [i for i in range(5) for _ in range(4)]
    assert sum(o.weights.sum() for o in operations) == pytest.approx(1.0)


def test_a_datum_longer_than_an_operation_travels_alone():
    batch = Batch((supervised_datum([1] * 20, [True] * 20), supervised_datum([2, 3], [True] * 2)))

    assert [len(o.tokens) for o in batch.operations("cross_entropy", limit=8)] == [19, 1]


def test_a_loss_refuses_datums_made_for_another():
    chat = supervised_datum([1, 2], [True, True])

    with pytest.raises(InvalidData, match="datum 0: ppo needs"):
        pack([chat], "ppo")
    with pytest.raises(InvalidData, match="does not use"):
        pack([sampled_datum([1], [2], [0], [0])], "cross_entropy")
    with pytest.raises(InvalidData, match="at least one"):
        pack([], "ppo")


def test_the_digest_sees_tokens_masks_and_order():
    one = supervised_datum([1, 2, 3], [False, True, True])
    masked = supervised_datum([1, 2, 3], [False, False, True])

    digests = {digest_of(d) for d in ([one], [masked], [one, masked], [masked, one])}

    assert len(digests) == 4
    assert digest_of([one]) == digest_of([supervised_datum([1, 2, 3], [False, True, True])])
