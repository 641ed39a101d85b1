"""What `make test` leaves to `make soak`, beyond the tests that carry the mark themselves.

Each of these is a further case of a test whose other cases run in `make test` and reach the same
branches of `tfps`, or a whole run of parts that are tested there one by one, and takes seconds of
processor time. Where another test covers it, that one is written beside it.
"""

# File -> the beginnings of its tests' names, with parameters.
SOAK_ONLY: dict[str, list[str]] = {
    "chaos/test_kills.py": [
        "test_a_killed_worker_costs_no_batch[rounds",
        "test_a_killed_ps_comes_back_to_the_newest_snapshot[async",  # launch/test_survival
        "test_other_servers_take_the_part_of_a_ps_that_does_not_return[reshard",
        "test_a_worker_killed_while_it_infers_costs_no_example",  # training/test_feed_losses
        "test_without_snapshots_a_lost_ps_is_one_line",  # cluster/test_processes
        "test_other_servers_take_the_part_of_a_ps_that_does_not_return[wait",
    ],
    "cluster/test_made_before.py": [
        "test_tables[static]",
        "test_tables[vocabulary]",
        "test_tables[mutable]",
        "test_tables[dense]",
        "test_adapted_layers[StringLookup]",
        "test_adapted_layers[TextVectorization]",
        "test_adapted_layers[Normalization]",
        "test_adapted_layers[Discretization]",
        "test_adapted_layers[Hashing]",
    ],
    "cluster/test_processes.py": [
        "test_a_lost_server_ends_the_job_with_its_name[ps0",
        "test_a_lost_ps_ends_a_join_and_is_started_again",  # coordinator/test_recovery
    ],
    "compression/test_laws.py": [
        "test_what_arrives_is_as_announced[TopK-0.05]",
        "test_nothing_is_lost[feedback-TopK-0.05]",
        "test_nothing_is_lost[feedback-RandomK-0.3-False]",
        "test_nothing_is_lost[DGC-0.05-0.9-0]",
    ],
    "coordinator/test_identity.py": [
        "test_its_threads_end_with_it[dataset]",
        "test_its_threads_end_with_it[distributed]",
    ],
    "coordinator/test_recovery.py": [
        "test_all_workers_at_once_and_one_twice",
    ],
    "coordinator/test_results.py": [
        "test_many_results_at_once[stock]",
    ],
    "embeddings/test_hash_table.py": [
        "test_a_random_stream[{'expected': 40, 'traced': True}]",
        "test_a_random_stream[{'expire_after': 6}]",
    ],
    "embeddings/test_history.py": [
        "test_a_cut_has_one_moment_and_the_next_one_only_what_has_changed[keyed]",
    ],
    "keras/test_float8.py": [
        "test_scales_take_their_gradients_as_in_keras[Sequential",
        "test_scales_take_their_gradients_as_in_keras[OwnStep",
    ],
    "keras/test_functions_and_schedules.py": [
        "test_functions_in_a_model_take_and_return_what_tensorflow_makes_of_values[a",
        "test_a_schedule_assigned_after_the_first_fit_is_in_force_at_the_next",  # ..._before_...
    ],
    "keras/test_hooks_in_fit.py": [
        "test_predict_and_evaluate_in_a_batch_hook[predict",
    ],
    "keras/test_logs_and_states.py": [
        "test_states_are_kept_before_any_fit[OwnPredict-False]",
    ],
    "keras/test_own_steps.py": [
        "test_tables[Recommender-1",
        "test_nested_tapes_and_jacobians",
    ],
    "keras/test_programs.py": [
        "test_another_model_trains_in_a_hook_of_a_batch",
        "test_grouped_convolutions_without_compilation",
        "test_scipy_matrices",  # test_sparse_tensors
        "test_predictions_of_differing_length[True]",
    ],
    "keras/test_repeated_apply.py": [
        "test_every_call_is_an_update[Thrice",
        "test_on_several_servers[consistency0",
    ],
    "keras/test_states_of_inference.py": [
        "test_unlisted_states_that_only_a_later_step_assigns[fit",
    ],
    "keras/test_stops.py": [
        "test_an_epoch_that_is_stopped_before_has_one_batch[on_train_begin-1]",
        "test_an_epoch_that_is_stopped_before_has_one_batch[on_train_begin-2]",
        "test_an_epoch_that_is_stopped_before_has_one_batch[on_epoch_begin-1]",
        "test_an_epoch_that_is_stopped_before_has_one_batch[on_epoch_begin-2]",
        "test_an_epoch_that_is_stopped_before_has_one_batch[on_train_batch_begin-1]",
        "test_what_is_stopped_before_evaluates_and_predicts_one_call[1]",
    ],
    "launch/test_laws.py": [
        "test_an_error_of_the_users_own_ends_the_job[ssh-1",
        "test_an_error_of_the_users_own_ends_the_job[ssh-42",
        "test_an_error_of_the_users_own_ends_the_job[ssh-3",
        "test_an_error_of_the_users_own_ends_the_job[slurm-1",
        "test_an_error_of_the_users_own_ends_the_job[slurm-42",
        "test_an_error_of_the_users_own_ends_the_job[slurm-2",
        "test_a_job_begins_again_as_a_whole[ssh",
        "test_a_job_begins_again_as_a_whole[slurm",
    ],
    "launch/test_real_job.py": [
        "test_a_job_whose_ps_is_killed_begins_again_and_trains_a_model",  # test_laws, chaos/
    ],
    "launch/test_slurm.py": [
        "test_the_users_own_error_is_the_jobs[3",
    ],
    "launch/test_ssh.py": [
        "test_a_job_goes_on_without_a_lost_host",
    ],
    "models/test_allreduce.py": [
        "test_a_language_model_on_two_workers",  # ..._is_one_process_on_all_batches
        "test_a_language_model_on_two_devices",
        "test_a_worker_that_does_not_come",  # test_a_lost_worker_ends_the_others
        "test_all_reduce_is_one_process_on_all_batches[multiworker]",
    ],
    "models/test_bert.py": [
        "test_workers_share_the_text_and_read_it_again_alike[60",
    ],
    "models/test_gpt.py": [
        "test_a_loss_that_is_lost_gets_one_line",
    ],
    "models/test_gpt_stream.py": [
        "test_shards_are_read_in_order[bytes]",
    ],
    "models/test_linear.py": [
        "test_it_comes_to_least_squares[ps with a codec",
        "test_it_comes_to_least_squares[ps]",
    ],
    "models/test_recommender.py": [
        "test_it_learns_as_in_plain_keras[dlrm",
        "test_it_learns_as_in_plain_keras[fm",
    ],
    "models/test_text_classification.py": [
        "test_it_finds_the_classes[ps]",
        "test_it_finds_the_classes[ps with a codec]",
    ],
    "models/test_word2vec.py": [
        "test_words_of_a_subject_come_together[ps]",
        "test_words_of_a_subject_come_together[ps with a codec]",
    ],
    "planning/test_laws.py": [
        "test_a_better_link_never_slows[identity / identity, async]",
        "test_a_better_link_never_slows[identity / identity, async, overlap 1]",
        "test_a_better_link_never_slows[int8 / int8, async, overlap 2]",
        "test_a_better_link_never_slows[int8 / bfloat16, sync]",
        "test_a_better_link_never_slows[topk:0.01 / int8, local:4,merge=each,delay=2]",
        "test_a_better_link_never_slows[int8 / int8, local:4]",
    ],
    "store/test_buckets.py": [
        "test_unpack_inverts_pack[1-16]",
        "test_unpack_inverts_pack[3-16]",
    ],
    "store/test_growing.py": [
        "test_policies[Sync-arguments0",
    ],
    "store/test_growing_optimizer.py": [
        "test_what_an_optimizer_of_rows_may_not_be[own0-must be a plain optimizer]",
    ],
    "store/test_growing_saves.py": [
        "test_saves_while_keys_are_let_in",  # test_growing, ..._has_all_of_a_table
    ],
    "store/test_messages.py": [
        "test_rows_of_many_tables_are_few_messages[grows]",
        "test_one_worker_computes_plain_keras_bit_by_bit[mixed_bfloat16]",
    ],
    "store/test_row_storage.py": [
        "test_laws[3-hashed",
    ],
    "store/test_server_state.py": [
        "test_a_restored_store_goes_on_bit_by_bit[outer",
        "test_a_restored_store_goes_on_bit_by_bit[adafactor",
        "test_a_restored_store_goes_on_bit_by_bit[loss scale",
        "test_a_restored_store_goes_on_bit_by_bit[open round by rows-to12]",
    ],
    "store/test_tables.py": [
        "test_lazy_equals_exact_where_every_row_is_looked_up[<lambda>4",
        "test_exact_updates_equal_plain_keras[None",
    ],
    "store/test_views.py": [
        "test_the_view_is_the_copy_bit_by_bit[OneBit(",
        "test_what_a_payload_leaves_out_comes_later[OneBit(",
        "test_what_a_payload_leaves_out_comes_later[Int8(mi",
        "test_a_value_that_is_not_finite_does_not_stay[nan]",
    ],
    "training/test_added_state.py": [
        "test_nothing_is_lost_among_concurrent_workers[Sequential",
    ],
    "training/test_auto_codecs.py": [
        "test_a_slow_link_gets_codecs_and_a_fast_one_none[0]",
    ],
    "training/test_callbacks.py": [
        "test_tensorboard_has_everything[2",
    ],
    "training/test_codecs.py": [
        "test_two_workers_learn_with_a_codec_for_each_head",
        "test_codecs_that_are_not_for_weights[ErrorFeedback",
    ],
    "training/test_comings_and_goings.py": [
        "test_a_feed_learns_of_them_when_the_next_loop_begins[splits]",
    ],
    "training/test_consistency.py": [
        "test_switching_between_epochs_loses_and_repeats_nothing",  # ..._in_an_epoch_...
        "test_uneven_data_validation_and_several_steps_a_call[local",
        "test_the_rate_is_divided_by_the_staleness[False",
    ],
    "training/test_device_split.py": [
        "test_under_every_policy[local",
        "test_under_every_policy[overlap 2",
        "test_lookups_of_several_inputs_and_an_added_loss",
        "test_two_workers_in_rounds",
        "test_a_loss_and_metrics_that_no_sum_of_parts_gives",
        "test_an_own_train_step",
        "test_a_lookup_layer_ragged_and_sparse_inputs",
        "test_under_every_policy[async]",
        "test_no_number_of_devices[0]",
    ],
    "training/test_device_stages.py": [
        "test_model_parallel_by_tf_device[2",
        "test_no_device_of_a_worker[GPU:0]",
        "test_no_device_of_a_worker[1]",
    ],
    "training/test_differences.py": [
        "test_differences_without_rounding_are_plain_keras[async]",
        "test_differences_without_rounding_are_plain_keras[several steps a call]",
        "test_differences_without_rounding_are_plain_keras[sync]",
        "test_differences_without_rounding_are_whole_pulls[prefetch 1]",
        "test_differences_without_rounding_are_whole_pulls[prefetch 2]",
        "test_differences_without_rounding_are_whole_pulls[overlap 1]",
        "test_differences_without_rounding_are_whole_pulls[overlap 2]",
        "test_differences_without_rounding_are_whole_pulls[local, delayed]",
        "test_differences_without_rounding_are_whole_pulls[local, each]",
        "test_differences_without_rounding_are_whole_pulls[sync]",
        "test_one_worker_trains_as_by_hand[OneBit(min_bytes",
    ],
    "training/test_feed_losses.py": [
        "test_each_batch_is_trained_on_once[splits of unknown length-1",
        "test_each_batch_is_trained_on_once[splits-",
        "test_each_batch_is_trained_on_once[dataset_fn-1",
        "test_each_batch_is_trained_on_once[shuffled dataset_fn-1",
        "test_each_batch_is_trained_on_once[several shapes-1",
        "test_each_batch_is_trained_on_once[arrays-1",
        "test_each_batch_that_is_held_is_trained_on_once[dataset_fn",
    ],
    "training/test_following.py": [
        "test_what_hooks_see_is_what_they_see_in_keras[pickle]",
    ],
    "training/test_going_back.py": [
        "test_the_input_goes_back[arrays",
        "test_a_server_is_lost_in_a_hook_of_an_epoch[at1]",
    ],
    "training/test_hooks_of_several_workers.py": [
        "test_a_short_call_that_ends_before_a_longer_one[fit]",
        "test_no_hook_follows_the_one_that_stops[fit]",
    ],
    "training/test_lookup_layers.py": [
        "test_one_worker_trains_as_keras[before",
        "test_two_workers[consistency2",
        "test_datasets_of_workers_use_the_layers[outside]",
    ],
    "training/test_optimizer_state.py": [
        "test_both_ways_with_plain_keras[accumulation",
        "test_both_ways_with_plain_keras[adafactor",
        "test_both_ways_with_plain_keras[several",
        "test_averaged_weights_are_swapped_as_in_keras[False",
        "test_the_chief_holds_no_slots_while_fit_runs[False",
        "test_trainers_one_after_the_other_equal_one[schedule free",
        "test_both_ways_with_plain_keras[loss scale]",
    ],
    "training/test_order_of_epochs.py": [
        "test_every_epoch_has_the_order_that_it_has_in_keras[a seed",
        "test_every_epoch_has_the_order_that_it_has_in_keras[steps",
        "test_every_epoch_has_the_order_that_it_has_in_keras[arrays]",
    ],
    "training/test_own_state.py": [
        "test_callbacks_reset_them[on_epoch_end",
        "test_the_training_state_has_them",  # test_training_state
    ],
    "training/test_reports.py": [
        "test_a_report_stays_until_the_end_of_an_epoch[known",
        "test_a_report_stays_until_the_end_of_an_epoch[arrays",
        "test_the_logs_are_those_of_keras[known",
    ],
    "training/test_several_optimizers.py": [
        "test_partitioned_and_compiled_and_several_steps_a_call_change_nothing",
    ],
    "training/test_snapshot_copies.py": [
        "test_a_part_that_was_altered_is_not_used",  # test_snapshots, ..._is_damaged
        "test_a_lost_server_finds_its_part_on_another_host",  # test_a_part_is_on_two_hosts
        "test_a_part_is_on_two_hosts[vanished0",
        "test_another_number_of_servers",
        "test_few_files_are_used_again_and_again",
    ],
    "training/test_snapshot_tables.py": [
        "test_updates_go_on_while_a_cut_is_written_and_are_not_in_it[growing]",
        "test_training_goes_on_bit_by_bit[dense-servers]",
        "test_a_snapshot_has_only_what_has_changed[dense]",
        "test_export[dense]",
    ],
    "training/test_snapshots.py": [
        "test_a_fit_that_had_ended_is_not_run_again",
        "test_every_batch_is_used_once_in_the_order_of_the_unbroken_run[py dataset",
        "test_carried_metrics_go_on",
    ],
    "training/test_trainer.py": [
        "test_one_worker_equals_keras[adam-False",
        "test_no_update_is_lost_or_doubled[1-100",
        "test_mixed_precision[mixed_bfloat16",
        "test_a_seeded_run_repeats_bit_for_bit",  # ..._goes_on_bit_by_bit
        "test_optimizer_options[several]",
    ],
    "training/test_training_state.py": [
        "test_a_new_trainer_on_another_cluster_goes_on_bit_by_bit[warm-up",
        "test_a_new_trainer_on_another_cluster_goes_on_bit_by_bit[local steps each",
        "test_an_export_between_two_parts_of_a_run_changes_nothing",
        "test_what_workers_remember_survives_an_interrupt[local steps each",
        "test_history_has_what_callbacks_add_and_the_epochs_of_before",
        "test_the_position_in_the_data_goes_on[chief]",
    ],
    "training/test_warmup.py": [
        "test_local_steps_have_no_warm_up",
        "test_two_workers_learn_through_a_warm_up",
    ],
    "worker/test_local_delay.py": [
        "test_a_worker_sees_its_own_steps_at_once[3-1",
    ],
    "worker/test_local_sgd.py": [
        "test_equals_keras_models_merged_by_hand[decay",
    ],
    "worker/test_prefetch_step.py": [
        "test_rows_of_tables_are_as_old_as_all_else[2",
        "test_one_worker_misses_just_its_last_updates[2",
        "test_datasets_of_workers_that_end[1-1]",
        "test_servers_need_not_be_told_of_a_condition[by the chief-2]",
        "test_what_stands_in_for_a_batch_can_be_looked_up[by datasets of the workers-1]",
        "test_what_a_worker_carries_is_on_the_worker[2-1]",
    ],
}


def is_soak_only(file: str, name: str) -> bool:
    """Whether a test (file below `tests/`, name with parameters) is left to `make soak`."""
    return name.startswith(tuple(SOAK_ONLY.get(file, ())))
