"""`Trainer` and what drives it: input, consistency policies, schedules, epochs and callbacks.

May import: _keras_data, _keras_metrics, _keras_models, _keras_optimizers, _keras_placement,
_keras_variables, _tf, _tf_cautions, _tf_data, _tf_functions, _tf_shuffles, cluster, compression,
embeddings, errors, exit_codes, model, parsing, planning, profiling, store, strategy, worker.

The chief decides who steps when; every batch goes to exactly one worker.
"""
