"""What `make test` leaves to `make soak`, beyond the tests that carry the mark themselves.

Each of these is a second case of something whose first case runs in `make test`, or a whole run of
parts that are tested there one by one, and takes seconds of processor time. What covers it is
written beside it.
"""

# File -> the beginnings of its tests' names, with parameters.
SOAK_ONLY: dict[str, list[str]] = {
    "store/test_growing_saves.py": [
        "test_saves_while_keys_are_let_in",  # test_growing, ..._has_all_of_a_table
    ],
    "chaos/test_kills.py": [
        "test_a_killed_worker_costs_no_batch[rounds",
        "test_a_killed_ps_comes_back_to_the_newest_snapshot[async",  # launch/test_survival
        "test_other_servers_take_the_part_of_a_ps_that_does_not_return[reshard",
        "test_a_worker_killed_while_it_infers_costs_no_example",  # training/test_feed_losses
        "test_without_snapshots_a_lost_ps_is_one_line",  # cluster/test_processes
        "test_other_servers_take_the_part_of_a_ps_that_does_not_return[wait",
    ],
    "cluster/test_processes.py": [
        "test_a_lost_server_ends_the_job_with_its_name[ps0",
        "test_a_lost_ps_ends_a_join_and_is_started_again",  # coordinator/test_recovery
    ],
    "coordinator/test_recovery.py": ["test_all_workers_at_once_and_one_twice"],
    "keras/test_float8.py": [
        "test_scales_take_their_gradients_as_in_keras[Sequential",
        "test_scales_take_their_gradients_as_in_keras[OwnStep",
    ],
    "keras/test_functions_and_schedules.py": [
        "test_functions_in_a_model_take_and_return_what_tensorflow_makes_of_values[array",
        "test_a_schedule_assigned_after_the_first_fit_is_in_force_at_the_next",  # ..._before_...
    ],
    "keras/test_hooks_in_fit.py": ["test_predict_and_evaluate_in_a_batch_hook[predict"],
    "keras/test_own_steps.py": [
        "test_tables[Recommender-1",
        "test_nested_tapes_and_jacobians",
    ],
    "keras/test_programs.py": [
        "test_another_model_trains_in_a_hook_of_a_batch",
        "test_grouped_convolutions_without_compilation",
        "test_scipy_matrices",  # test_sparse_tensors
    ],
    "keras/test_repeated_apply.py": [
        "test_every_call_is_an_update[Thrice",
        "test_on_several_servers[consistency0",
    ],
    "keras/test_states_of_inference.py": [
        "test_unlisted_states_that_only_a_later_step_assigns[fit",
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
    "launch/test_slurm.py": ["test_the_users_own_error_is_the_jobs[3"],
    "launch/test_ssh.py": ["test_a_job_goes_on_without_a_lost_host"],  # ..._and_comes_back
    "models/test_allreduce.py": [
        "test_a_language_model_on_two_workers",  # ..._is_one_process_on_all_batches
        "test_a_language_model_on_two_devices",
        "test_a_worker_that_does_not_come",  # test_a_lost_worker_ends_the_others
    ],
    "models/test_bert.py": ["test_workers_share_the_text_and_read_it_again_alike[60"],
    "models/test_gpt.py": ["test_a_loss_that_is_lost_gets_one_line"],  # cluster/test_processes
    "store/test_server_state.py": [
        "test_a_restored_store_goes_on_bit_by_bit[outer",
        "test_a_restored_store_goes_on_bit_by_bit[adafactor",
        "test_a_restored_store_goes_on_bit_by_bit[loss scale",
    ],
    "store/test_growing.py": ["test_policies[Sync-arguments0"],  # test_rounds_are_one_step...
    "store/test_row_storage.py": ["test_laws[3-hashed"],  # test_a_table_sends...[3-hashed
    "store/test_tables.py": [
        "test_lazy_equals_exact_where_every_row_is_looked_up[<lambda>4",
        "test_exact_updates_equal_plain_keras[None",
    ],
    "training/test_added_state.py": ["test_nothing_is_lost_among_concurrent_workers[Sequential"],
    "training/test_callbacks.py": ["test_tensorboard_has_everything[2"],
    "training/test_codecs.py": ["test_two_workers_learn_with_a_codec_for_each_head"],
    "training/test_consistency.py": [
        "test_switching_between_epochs_loses_and_repeats_nothing",  # ..._in_an_epoch_...
        "test_uneven_data_validation_and_several_steps_a_call[local",
        "test_the_rate_is_divided_by_the_staleness[False",
    ],
    # Each batch is split, and gradients are added up, in the cases that stay.
    "training/test_device_split.py": [
        "test_under_every_policy[local",
        "test_under_every_policy[overlap 2",
        "test_lookups_of_several_inputs_and_an_added_loss",
        "test_two_workers_in_rounds",
        "test_a_loss_and_metrics_that_no_sum_of_parts_gives",
        "test_an_own_train_step",
        "test_a_lookup_layer_ragged_and_sparse_inputs",
    ],
    "training/test_device_stages.py": ["test_model_parallel_by_tf_device[2"],
    # A dataset_fn and arrays with three workers, and splits of unknown length, stay.
    "training/test_feed_losses.py": [
        "test_each_batch_is_trained_on_once[splits of unknown length-1",
        "test_each_batch_is_trained_on_once[splits-",
        "test_each_batch_is_trained_on_once[dataset_fn-1",
        "test_each_batch_is_trained_on_once[shuffled dataset_fn-1",
        "test_each_batch_is_trained_on_once[several shapes-1",
        "test_each_batch_is_trained_on_once[arrays-1",
        "test_each_batch_that_is_held_is_trained_on_once[dataset_fn",
    ],
    "models/test_linear.py": ["test_it_comes_to_least_squares[ps with a codec"],
    "models/test_recommender.py": [
        "test_it_learns_as_in_plain_keras[dlrm",
        "test_it_learns_as_in_plain_keras[fm",
    ],
    "training/test_going_back.py": ["test_the_input_goes_back[arrays"],
    "training/test_lookup_layers.py": [
        "test_one_worker_trains_as_keras[before",
        "test_two_workers[consistency2",
    ],
    "training/test_optimizer_state.py": [
        "test_both_ways_with_plain_keras[accumulation",
        "test_both_ways_with_plain_keras[adafactor",
        "test_both_ways_with_plain_keras[several",
        "test_averaged_weights_are_swapped_as_in_keras[False",
        "test_the_chief_holds_no_slots_while_fit_runs[False",
        "test_trainers_one_after_the_other_equal_one[schedule free",
    ],
    "training/test_order_of_epochs.py": [
        "test_every_epoch_has_the_order_that_it_has_in_keras[a seed",
        "test_every_epoch_has_the_order_that_it_has_in_keras[steps",
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
    ],
    "training/test_training_state.py": [
        "test_a_new_trainer_on_another_cluster_goes_on_bit_by_bit[warm-up",
        "test_a_new_trainer_on_another_cluster_goes_on_bit_by_bit[local steps each",
        "test_an_export_between_two_parts_of_a_run_changes_nothing",
        "test_what_workers_remember_survives_an_interrupt[local steps each",
        "test_history_has_what_callbacks_add_and_the_epochs_of_before",
    ],
    "training/test_warmup.py": [
        "test_local_steps_have_no_warm_up",
        "test_two_workers_learn_through_a_warm_up",
    ],
    "worker/test_local_delay.py": ["test_a_worker_sees_its_own_steps_at_once[3-1"],
    "worker/test_local_sgd.py": ["test_equals_keras_models_merged_by_hand[decay"],
    "worker/test_prefetch_step.py": [
        "test_rows_of_tables_are_as_old_as_all_else[2",
        "test_one_worker_misses_just_its_last_updates[2",
    ],
}


def is_soak_only(file: str, name: str) -> bool:
    """Whether a test (file below `tests/`, name with parameters) is left to `make soak`."""
    return name.startswith(tuple(SOAK_ONLY.get(file, ())))
