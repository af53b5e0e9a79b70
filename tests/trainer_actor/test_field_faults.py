"""Faults that other systems for many adapters had, and which tests show that this one has them not.

Numbered as in the list that the project was begun with: B1 gradients and optimizers, B2 swapping and
storing, B3 order, repetition and liveness. Checked here: no number is missing, and every test exists.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NUMBERS = [
    f"B{part}.{number}" for part, count in ((1, 18), (2, 11), (3, 19)) for number in range(1, count + 1)
]

ENGINE = "trainer_actor"
LOOP = "trainer_actor/loop"
FAULTS_B1 = f"{LOOP}/test_field_faults_b1.py"
FAULTS_B2 = f"{LOOP}/test_field_faults_b2.py"
FAULTS_B3 = f"{LOOP}/test_field_faults_b3.py"
CROWDS = f"{ENGINE}/schedules/test_schedules.py::test_every_adapter_of_a_crowd_ends_as_it_does_alone"

PROOFS: dict[str, tuple[str, ...]] = {
    # A step applies another adapter's gradient.
    "B1.1": (
        CROWDS,
        f"{LOOP}/test_loop_training.py::test_no_order_of_two_adapters_operations_changes_either",
        f"{ENGINE}/test_compute_slots.py::test_every_interleaving_of_two_adapters_ends_the_same",
    ),
    # A second forward_backward erases what the first gathered.
    "B1.2": (
        f"{ENGINE}/test_compute_slots.py::test_gradients_add_up_over_calls",
        f"{LOOP}/test_loop_training.py::test_losses_add_up_over_calls_as_over_datums",
    ),
    # What data-parallel ranks gathered is added up twice, or with what another adapter gathered.
    "B1.3": (f"{ENGINE}/test_ranks.py::test_b1_03_on_two_ranks_an_adapter_trains_among_others_as_alone",),
    # Adapters share Adam's step count.
    "B1.4": (f"{ENGINE}/test_compute_optimizer.py::test_every_adapter_counts_its_own_steps",),
    # Weight decay of one shrinks all.
    "B1.5": (f"{FAULTS_B1}::test_b1_05_weight_decay_of_one_adapter_shrinks_no_other",),
    # A slot hands gradients, moments or weights on to its next adapter.
    "B1.6": (
        f"{LOOP}/test_loop_training.py::test_a_slot_passes_nothing_on_to_its_next_adapter",
        f"{ENGINE}/test_compute_slots.py::test_a_used_slot_gives_nothing_to_its_next_adapter",
        f"{ENGINE}/test_compute_fused.py::test_what_memory_held_before_does_not_change_a_bit",
    ),
    # Clipping sees, or scales, the gradients of others.
    "B1.7": (
        f"{FAULTS_B1}::test_b1_07_clipping_sees_and_scales_the_own_gradients_alone",
        f"{ENGINE}/test_compute_slots.py::test_a_step_touches_no_bystander",
    ),
    # Main weights of all are rounded whenever somebody comes or goes.
    "B1.8": (f"{FAULTS_B1}::test_b1_08_main_weights_stay_in_float32_whoever_comes_and_goes",),
    # The first step after a load restores what was there before it.
    "B1.9": (f"{FAULTS_B1}::test_b1_09_the_step_after_a_load_begins_from_the_loaded_weights",),
    # Recomputed activations spoil gradients.
    "B1.10": (
        f"{FAULTS_B1}::test_b1_10_recomputed_activations_give_the_same_gradients",
        f"{ENGINE}/test_compute_recompute.py::test_recomputing_activations_changes_no_bit_of_any_adapter",
    ),
    # A step without a gradient decays weights and counts.
    "B1.11": (
        f"{LOOP}/test_loop_training.py::test_a_step_without_any_gradient_is_an_exact_no_op",
        f"{ENGINE}/test_compute_optimizer.py::test_a_step_without_gradients_changes_nothing",
    ),
    # The first loss of a merged batch is used for all of it.
    "B1.12": (
        f"{FAULTS_B1}::test_b1_12_different_losses_in_one_crowd_are_each_their_own",
        f"{ENGINE}/test_compute_losses.py::test_losses_of_one_pass_do_not_mix",
    ),
    # So are the first one's settings.
    "B1.13": (
        f"{FAULTS_B1}::test_b1_13_different_settings_of_one_loss_in_one_crowd_are_each_their_own",
        f"{ENGINE}/test_compute_losses.py::test_losses_of_one_pass_do_not_mix",
    ),
    # A sum becomes a mean.
    "B1.14": (
        f"{ENGINE}/test_compute_lora.py::test_loss_and_every_gradient_are_pefts",
        f"{ENGINE}/test_compute_slots.py::test_doubling_the_data_doubles_the_gradients",
    ),
    # NaN, or an exception, of one tenant reaches the others of a pass.
    "B1.15": (
        f"{FAULTS_B1}::test_b1_15_what_one_tenant_breaks_in_a_crowd_breaks_nobody_elses",
        f"{ENGINE}/test_compute_lora.py::test_nan_of_one_adapter_reaches_no_other",
        f"{ENGINE}/test_compute_fused.py::test_weights_that_are_not_finite_reach_no_other_adapter",
    ),
    # What fails half way leaves half its gradients.
    "B1.16": (
        f"{FAULTS_B1}::test_b1_16_an_operation_that_fails_in_its_last_piece_leaves_no_gradient_of_the_others",
        f"{LOOP}/test_loop_training.py::test_bad_data_leaves_the_gradients_as_they_were",
        f"{ENGINE}/test_compute_pieces.py::test_a_run_that_is_given_up_leaves_no_trace",
    ),
    # Neighbours change what random numbers one draws.
    "B1.17": (f"{FAULTS_B1}::test_b1_17_nothing_that_is_computed_draws_random_numbers",),
    # A merged pass has other bits than one alone.
    "B1.18": (
        CROWDS,
        f"{ENGINE}/test_compute_fused.py::test_any_lengths_share_a_pass_without_changing_a_bit",
        f"{ENGINE}/test_compute_fused.py::test_adapters_share_a_pass_in_bfloat16_within_its_rounding",
    ),
    # Something other than the adapter is trained, and swapped.
    "B2.1": (
        f"{ENGINE}/test_compute_models.py::test_only_adapters_are_trained",
        f"{ENGINE}/test_compute_models.py::test_training_leaves_the_base_model_as_it_was",
    ),
    # A piece of the state is forgotten in a swap.
    "B2.2": (
        f"{FAULTS_B2}::test_b2_02_every_piece_and_counter_of_a_state_comes_back",
        f"{ENGINE}/test_residents.py::test_every_piece_and_number_of_a_state_survives_host_and_disk",
    ),
    # Who is created in the place of the one just deleted gets its weights.
    "B2.3": (
        f"{FAULTS_B2}::test_b2_03_an_adapter_that_takes_the_place_of_the_one_just_deleted_begins_fresh",
    ),
    # Pins leak until nothing can leave.
    "B2.4": (f"{ENGINE}/test_tiers.py::TestPlacements",),
    # A copy's memory is used again before the copy is done.
    "B2.5": (
        f"{ENGINE}/test_residents.py::test_a_pass_does_not_compute_in_memory_that_a_copy_behind_it_still_reads",
    ),
    # Memory grows with every client until there is none.
    "B2.6": (
        f"{ENGINE}/test_tiers.py::test_states_that_budgets_cannot_hold_are_refused_before_anything_moves",
        f"{ENGINE}/test_tiers.py::test_what_could_never_be_placed_is_refused_with_the_numbers",
        f"{ENGINE}/test_compute_pieces.py::test_bytes_of_a_row_and_of_a_state_are_exact",
    ),
    # A swap to what is live already, and one that fails in the middle.
    "B2.7": (
        f"{ENGINE}/test_tiers.py::test_placing_what_is_there_is_free",
        f"{ENGINE}/test_residents.py::test_a_swap_whose_copy_fails_anywhere_leaves_both_states_whole",
    ),
    # All tenants begin with the same weights.
    "B2.8": (
        f"{FAULTS_B2}::test_b2_08_seeds_draw_what_they_draw_wherever_the_adapter_lies",
        f"{ENGINE}/test_compute_slots.py::test_a_seed_gives_the_same_weights_everywhere",
    ),
    # The padding of a rank becomes part of it.
    "B2.9": (
        f"{FAULTS_B2}::test_b2_09_the_padding_of_a_rank_never_matters_nor_leaves",
        f"{ENGINE}/test_compute_slots.py::test_padding_stays_exactly_zero",
    ),
    # Trainer, files and sampler do not agree on alpha.
    "B2.10": (
        f"{FAULTS_B2}::test_b2_10_the_alpha_that_was_asked_for_is_computed_with_and_exported",
        f"{LOOP}/test_loop_disk.py::test_a_version_loads_in_peft_and_says_what_the_trainer_says",
        (
            "sampler_actor/test_engine_contract.py::"
            "test_adapters_of_any_rank_and_alpha_mixed_with_the_base_give_pefts_logprobs"
        ),
    ),
    # Tensors that are missing, too many or of another shape are passed over.
    "B2.11": (
        f"{ENGINE}/test_compute_slots.py::test_a_checkpoint_that_does_not_fit_says_why",
        f"{ENGINE}/test_compute_peft.py::test_files_that_do_not_fit_say_why",
    ),
    # A later step runs before an earlier forward_backward.
    "B3.1": (
        f"{LOOP}/test_loop_training.py::test_whatever_order_a_lane_arrives_in_it_runs_in_the_order_of_its_numbers",
        f"{LOOP}/test_loop_lanes.py::test_pipelined_operations_run_in_their_order",
    ),
    # What is sent again because its answer was lost runs twice.
    "B3.2": (
        f"{LOOP}/test_loop_lanes.py::test_a_resend_reads_the_first_outcome_and_trains_nothing",
        f"{LOOP}/test_loop_lanes.py::test_a_number_with_other_content_is_a_conflict_and_does_no_harm",
        "tinker_bridge/test_faults_replies.py::test_the_sdk_works_where_every_first_reply_is_lost",
    ),
    # Chunks of one call arrive in another order.
    "B3.3": (
        "tinker_bridge/test_faults_order.py::test_any_order_of_arrival_comes_to_the_same",
        "tinker_bridge/test_sdk_oracles.py::test_many_chunks_are_one_batch",
    ),
    # A number that never arrives stops its stream for ever.
    "B3.4": (
        f"{LOOP}/test_loop_lanes.py::test_a_gap_fails_what_waits_behind_it_and_the_lane_goes_on",
        (
            "tinker_bridge/test_faults_sessions.py::"
            "test_a_gap_that_is_never_filled_fails_what_waits_and_nobody_else"
        ),
    ),
    # A failure for good is answered so that clients repeat it for minutes.
    "B3.5": (
        "tinker_bridge/test_faults_order.py::test_a_wrong_operation_uses_up_its_number_and_tells_why",
        "tinker_bridge/test_faults_schema.py::test_no_request_makes_the_service_fail",
        "daemon/test_broker.py::test_only_a_failure_worth_another_try_runs_again",
    ),
    # Fewer datums than data-parallel ranks, or a number that they do not divide, and all wait for ever.
    "B3.6": (
        f"{ENGINE}/test_ranks.py::test_b3_06_two_ranks_compute_what_one_does_however_few_datums_there_are",
    ),
    # Padding changes results, or appears in them.
    "B3.7": (
        f"{FAULTS_B3}::test_b3_07_padding_counts_for_nothing_and_is_never_answered",
        f"{ENGINE}/test_compute_losses.py::test_left_out_positions_count_for_nothing_whatever_they_hold",
    ),
    # Merging confuses the order of datums.
    "B3.8": (f"{FAULTS_B3}::test_b3_08_answers_are_in_the_order_of_their_datums",),
    # Logprobs are too few, or shifted.
    "B3.9": (
        f"{ENGINE}/test_compute_models.py::test_a_fresh_adapter_is_the_base_model",
        f"{ENGINE}/test_compute_peft.py::test_peft_reads_the_export_and_computes_our_logprobs",
        f"{ENGINE}/test_compute_slots.py::test_scores_are_the_logprobs_of_the_next_tokens",
    ),
    # A short operation waits until a long one of another tenant ends.
    "B3.10": (f"{FAULTS_B3}::test_b3_10_a_short_operation_ends_while_a_long_one_still_runs",),
    # Everybody waits for a save, or for a heavy tenant's queue.
    "B3.11": (
        f"{FAULTS_B3}::test_b3_11_a_light_tenant_waits_for_few_passes_of_a_heavy_one",
        f"{ENGINE}/test_schedule.py::test_a_light_tenant_waits_for_one_pass_of_a_heavy_one",
        f"{LOOP}/test_loop_disk_jobs.py::test_neighbours_train_on_while_a_checkpoint_is_written",
    ),
    # A limit is counted first and taken later, so that more get in.
    "B3.12": (
        (
            f"{LOOP}/test_loop_tenants.py::"
            "test_b3_12_of_parallel_creations_at_a_cap_exactly_as_many_succeed_and_the_next_after_a_deletion"
        ),
        f"{LOOP}/test_loop_tenants.py::test_b3_12_the_cap_is_each_tenants_own_and_also_one_of_bytes",
        f"{LOOP}/test_loop_lanes.py::test_of_eight_simultaneous_creations_of_one_name_exactly_one_wins",
    ),
    # A creation that failed keeps what it took.
    "B3.13": (
        f"{LOOP}/test_loop_tenants.py::test_b3_13_a_creation_that_fails_takes_nothing_of_its_tenants_quota",
        f"{LOOP}/test_loop_residents.py::test_a_creation_that_the_disk_refuses_takes_neither_name_nor_memory",
        f"{LOOP}/test_loop_residents.py::test_an_adapter_whose_state_cannot_be_read_takes_no_memory",
    ),
    # Two clients that come first at one time break the start.
    "B3.14": (f"{FAULTS_B3}::test_b3_14_eight_first_creations_at_one_time_all_succeed",),
    # Broker and actors that do not hear each other wait for ever, or lose a publish.
    "B3.15": (
        "daemon/test_loop_live.py::test_versions_survive_the_death_of_both_actors",
        "daemon/test_processes_live.py::test_a_killed_actor_comes_back_and_its_clients_are_told_to_send_again",
        "daemon/test_stopping.py::test_an_actor_that_does_not_drain_is_ended_and_its_clients_are_told",
        "daemon/test_publishing.py::test_a_publish_survives_the_death_of_the_trainer_once_it_is_written",
        "bus/test_actor_links.py::test_events_begin_with_the_table_and_survive_a_loss",
    ),
    # One bad message ends the loop, and nobody notices.
    "B3.16": (
        f"{LOOP}/test_loop_lanes.py::test_a_message_for_somebody_else_is_refused_and_the_loop_lives",
        f"{LOOP}/test_loop_ends.py::test_a_bug_is_answered_the_others_are_told_and_their_steps_are_kept",
        "daemon/test_loop_live.py::test_hostile_bytes_from_an_actors_side_harm_nobody",
        "daemon/test_processes_live.py::test_an_actor_that_hangs_is_ended_and_started_again",
    ),
    # Counters of adapters that did nothing go on.
    "B3.17": (f"{FAULTS_B3}::test_b3_17_what_others_do_moves_no_counter_of_an_idle_adapter",),
    # Counters go on although the training failed.
    "B3.18": (f"{FAULTS_B3}::test_b3_18_what_fails_moves_no_counter",),
    # What was meant for an adapter reaches the next one of its name.
    "B3.19": (f"{FAULTS_B3}::test_b3_19_what_was_meant_for_an_adapter_never_reaches_the_next_of_its_name",),
}


def test_no_fault_is_left_out() -> None:
    assert sorted(PROOFS) == sorted(NUMBERS)
    assert all(PROOFS.values())


@pytest.mark.parametrize("number", PROOFS)
def test_the_tests_that_prove_it_exist(number: str) -> None:
    for proof in PROOFS[number]:
        path, _, name = proof.partition("::")
        assert name in named(TESTS / path), proof


def test_every_test_with_a_number_is_in_the_index() -> None:
    listed = {proof.partition("::")[2] for proofs in PROOFS.values() for proof in proofs}
    numbered = {
        name
        for path in (TESTS / "trainer_actor").rglob("test_*.py")
        for name in named(path)
        if re.match(r"test_b[123]_\d", name)
    }

    assert numbered
    assert numbered <= listed


def named(path: Path) -> set[str]:
    """The tests of a file."""
    return set(_names(ast.parse(path.read_text())))


def _names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]):  # as hypothesis's `TestCase` of a machine
                yield name
            case _:
                pass
