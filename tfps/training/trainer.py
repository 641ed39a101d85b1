"""`Trainer`: `fit`, `evaluate` and `predict` of a Keras model on a cluster."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras, errors
from tfps.compression import Codec
from tfps.model import optimizer_traits
from tfps.strategy import ParameterServerStrategy
from tfps.training import callbacks as callbacks_lib, step_factory
from tfps.training.consistency import Async, Consistency, Sync
from tfps.training.epoch import Epoch
from tfps.training.session import Session
from tfps.training.work_loop import MetricTotals, WorkLoop
from tfps.worker.eval_step import EvalStep, PredictStep
from tfps.worker.tally import Report


def _errors_named(method):
    """Lets a method of `Trainer` raise `TaskLost` where TensorFlow says something else."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with self._session.dispatcher.errors_named():
            return method(self, *args, **kwargs)

    return call


class Trainer:
    """Trains a compiled Keras 3 model on the workers of a strategy's cluster.

    Arguments and meanings are those of `keras.Model.fit`, `evaluate` and
    `predict`. While `fit` runs, the truth about the weights is on the servers;
    the model has a copy of it whenever a callback may look: after each epoch,
    and after each batch if there is a callback that reads weights in its batch
    hooks. Outside of `fit` the model is the truth: weights set on it, by
    `load_weights` or by a callback, are what training goes on with.

    The optimizer's slots exist on the servers only, and start afresh with a new
    Trainer or after `model.compile`. `model.optimizer` keeps the settings: a
    learning rate assigned to it is used from the next step on.

    Attributes:
      model: the Keras model.
      strategy: the strategy.
      consistency: the policy that decides which worker may step when: `Async`,
        `BoundedStaleness`, `Sync` or `LocalSteps`. Another one may be assigned at
        any time, between epochs or by a callback: what workers are doing is
        finished and pushed, batches that they hold already (`overlap`) too, then
        the new one is in force.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: ParameterServerStrategy,
        consistency: Consistency | None = None,
        push: Codec | Callable[[Any], Codec] | None = None,
        pull: Codec | Callable[[Any], Codec] | None = None,
        overlap: int = 0,
        sparse_updates: str = "exact",
        push_warmup: int = 0,
        step_timeout: float = 3600.0,
    ):
        """Keeps its arguments; servers are filled when training starts.

        Args:
          model: compiled, built or not.
          strategy: connected to the cluster.
          consistency: `Async()` by default.
          push: codec of the gradients, worker to ps; or a function of the variable
            that gives one. None sends them as they are.
          pull: codec of the parameters, ps to worker, likewise.
          overlap: how many of its own updates a worker's gradient may miss, so that
            computing and the network work at the same time. 0: a step pulls, then
            computes, then pushes. 1: the next batch is taken and its parameters are
            pulled while it computes, and what it pushes leaves as the backward pass
            goes on. 2: an update waits for the next step and is pushed from its
            first moment on, which on a slow network saves the time of the forward
            pass. Other workers' updates are missed besides; the logs' `staleness`
            counts all. Overlap is at its best where a call is one step
            (`steps_per_execution=1`) on plain tensors; it has no effect in rounds
            (`Sync`) and with `LocalSteps`, which has a `delay` of its own.
          sparse_updates: what happens to the rows of an embedding table that a step
            did not look up. "exact": the optimizer updates them with a gradient
            of zero, as Keras does (momentum, weight decay). "lazy": nothing, they
            stay as they are bit by bit, and updates cost by the rows looked up
            instead of by the table.
          push_warmup: pushes applied by the servers (`optimizer.iterations`) before the
            codecs of `push` begin; until then, and by workers in the middle of a
            step, gradients are sent as they are, but rows of tables, which have no
            feedback, pass through their codec. From then on Adam and AdamW leave
            alone the second moments of what passes through a codec with feedback
            (Tang et al., "1-bit Adam", 2021), which makes their update linear in the
            gradient, as feedback needs it. 0: codecs from the start and no such
            change. A tenth of the training is a good choice. `LocalSteps` has no
            warm-up.
          step_timeout: seconds that a call on a worker may take, which is
            `steps_per_execution` steps or an exchange of `LocalSteps`; the first
            one is compiled in it too. Beyond that `fit`, `evaluate` and `predict`
            raise `StepTimeout`.

        Raises:
          ConfigError: an argument is none of these.
        """
        if not isinstance(strategy, ParameterServerStrategy):
            raise errors.ConfigError(
                f"strategy is a {type(strategy).__name__}; Trainer needs a "
                "tfps.ParameterServerStrategy"
            )
        self.model = model
        self.strategy = strategy
        if overlap not in (0, 1, 2):
            raise errors.ConfigError(f"overlap={overlap!r} must be 0, 1 or 2")
        if sparse_updates not in ("exact", "lazy"):
            raise errors.ConfigError(f'sparse_updates={sparse_updates!r} must be "exact" or "lazy"')
        if isinstance(push_warmup, bool) or not isinstance(push_warmup, int) or push_warmup < 0:
            raise errors.ConfigError(
                f"push_warmup={push_warmup!r} is not a number of updates; give a whole number, 0 "
                "for none"
            )
        if not step_timeout > 0:
            raise errors.ConfigError(f"step_timeout={step_timeout!r} must be above 0 s")
        wire = {"push": push, "pull": pull, "lazy": sparse_updates == "lazy"}
        self._session = Session(model, strategy, overlap, wire, push_warmup, step_timeout)
        weakref.finalize(self, self._session.dispatcher.close)
        self.consistency = consistency or Async()
        _keras.detach_from_strategy(model)

    @property
    def consistency(self) -> Consistency:
        """The policy in force."""
        return self._consistency

    @consistency.setter
    def consistency(self, policy: Consistency) -> None:
        if not isinstance(policy, Consistency):
            raise errors.ConfigError(
                f"consistency={policy!r} is no policy; use tfps.Async(), BoundedStaleness(bound), "
                "Sync(backups) or LocalSteps(steps)"
            )
        workers = self.strategy.cluster.num_workers
        if isinstance(policy, Sync) and policy.backups >= workers:
            raise errors.ConfigError(
                f"{policy} waits for none of {workers} worker{'s' if workers > 1 else ''}; have "
                "fewer backups than workers"
            )
        if policy.local_steps and (optimizer := getattr(self.model, "optimizer", None)):
            # Here, or it would end the epoch in which a callback assigns it.
            store = self._session.store
            step_factory.require_local(optimizer, store and store.plan)
        self._consistency = policy

    @_errors_named
    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit` for the arguments.

        Args:
          x: what Keras takes, or `dataset_fn(context) -> tf.data.Dataset`, called
            once for each worker with a `tfps.Context`.
          steps_per_epoch: batches in an epoch, over all workers together. By
            default the input once; with a `dataset_fn`, each worker's dataset once.

        Returns:
          The history. Its logs carry, besides loss and metrics, over all workers:
          `examples_per_second` and `steps_per_second`; `staleness` and
          `staleness_max`, the updates that a push has missed, on average and at
          most; `push_bytes_per_step` and `pull_bytes_per_step`, what a worker
          sends and receives in a step as the codecs predict it.

        Raises:
          ConfigError: model, optimizer or data cannot be trained here.
          WorkerError: a step failed; names the worker.
          TaskLost: a worker or ps went away.
          StepTimeout: a call took longer than `step_timeout`.
        """
        model = self.model
        _keras.check_compiled(model, "fit")
        if model.optimizer is None:
            raise errors.ConfigError("fit needs an optimizer; pass one to model.compile")
        optimizer_traits.require_supported(model.optimizer)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = _keras.split_validation(
                (x, y, sample_weight), validation_split=validation_split
            )
        session = self._session
        feed = session.feed(
            x,
            steps_per_epoch,
            y=y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            class_weight=class_weight,
        )
        session.prepare(feed, train=True)
        store = session.store
        validate = None
        if validation_data is not None:
            validate = self._validation(
                validation_data, validation_batch_size or batch_size, validation_steps
            )
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_history=True,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=epochs,
                steps=feed.num_batches,
                model=model,
            )
        model.stop_training = False
        store.load_if_changed()
        callbacks.on_train_begin()
        store.load_if_changed()
        logs = None
        for number in range(_keras.initial_epoch(model, initial_epoch), epochs):
            epoch = Epoch(session, feed, callbacks, lambda: self.consistency)
            callbacks.on_epoch_begin(number)
            store.load_if_changed()
            logs = epoch.run()
            if validate and _keras.should_evaluate(model, number, validation_freq):
                logs.update({f"val_{k}": v for k, v in validate(callbacks).items()})
            # TensorBoard(update_freq=n) would write an epoch's summaries only after
            # a multiple of n batches (Keras 3.15).
            with tf.summary.record_if(True):
                callbacks_lib.write_staleness(callbacks, epoch.staleness, number)
                callbacks.on_epoch_end(number, logs)
            if model.stop_training:
                break
            store.load_if_changed()
        if epochs > 0 and optimizer_traits.inner(model.optimizer).use_ema:
            store.load_if_changed()
            store.finalize()
            store.fetch()
        callbacks.on_train_end(logs)
        return model.history

    @_errors_named
    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
    ):
        """Loss and metrics over the input, each example once; see `keras.Model.evaluate`.

        The workers share the batches. With a `dataset_fn`, each worker's dataset
        is visited once.
        """
        _keras.check_compiled(self.model, "evaluate")
        feed = self._session.feed(
            x, steps, y=y, sample_weight=sample_weight, batch_size=batch_size, shuffle=False
        )
        logs = self._evaluate(feed, callbacks, verbose)
        return logs if return_dict else _keras.flatten_metrics(self.model, logs)

    @_errors_named
    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """The model's outputs, in the order of the input; see `keras.Model.predict`.

        Raises:
          DataError: `x` is a `dataset_fn`, whose batches have no order.
        """
        if callable(x):
            raise errors.DataError(
                "predict was given a dataset_fn, whose batches have no order among the workers; "
                "give arrays or one Dataset"
            )
        session = self._session
        feed = session.feed(x, steps, batch_size=batch_size, shuffle=False, group=1)
        session.prepare(feed, train=False, targets=False)
        model = self.model
        run = session.step(
            "predict",
            feed,
            lambda: PredictStep(
                session.program, session.puller, feed.source_spec, model.jit_compile
            ),
        )
        callbacks = self._callback_list(callbacks, verbose, feed)
        values, handles = session.pull(), session.store.handles()
        outputs: dict[int, Any] = {}

        def prepare(worker, work):
            def call():
                result = run(handles, values[worker], work.source)
                return _Prediction(1, keras.tree.map_structure(_to_numpy, result))

            return call

        def end(last, first, prediction):
            outputs[first] = prediction.outputs
            callbacks.on_predict_batch_end(last, {"outputs": prediction.outputs})

        model.stop_predicting = False
        callbacks.on_predict_begin()
        self._drive(
            feed, prepare, callbacks.on_predict_batch_begin, end, lambda: model.stop_predicting
        )
        callbacks.on_predict_end()
        if not outputs:
            raise errors.DataError("predict was given no batch; the input is empty")
        ordered = [outputs[i] for i in sorted(outputs)]
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *ordered)

    # Validation and evaluation.

    def _validation(self, validation_data, batch_size, steps):
        if callable(validation_data):
            x, y, sample_weight = validation_data, None, None
        else:
            x, y, sample_weight = _keras.unpack_batch(validation_data)
        batch_size = None if callable(x) else batch_size
        feed = self._session.feed(
            x, steps, y=y, sample_weight=sample_weight, batch_size=batch_size, shuffle=False
        )
        return lambda callbacks: self._evaluate(feed, callbacks, verbose=0)

    def _evaluate(self, feed, callbacks, verbose) -> dict:
        session = self._session
        session.prepare(feed, train=False)
        model = self.model
        run = session.step(
            "evaluate",
            feed,
            lambda: EvalStep(
                session.program,
                session.puller,
                feed.source_spec,
                feed.group == 1,
                model.jit_compile,
            ),
        )
        callbacks = self._callback_list(callbacks, verbose, feed)
        values, handles = session.pull(), session.store.handles()
        totals = MetricTotals(session.program)

        def prepare(worker, work):
            return lambda: Report.of(
                run(handles, values[worker], work.source, work.count), run.initial
            )

        def end(last, first, report):
            totals.add(report)
            callbacks.on_test_batch_end(last, totals.logs())

        feed.reset()  # Every validation sees the same batches.
        model.stop_evaluating = False
        callbacks.on_test_begin()
        self._drive(
            feed, prepare, callbacks.on_test_batch_begin, end, lambda: model.stop_evaluating
        )
        if not totals.examples and not model.stop_evaluating:
            raise errors.DataError("evaluate was given no batch; the input is empty")
        logs = totals.logs()
        callbacks.on_test_end(logs)
        return logs

    def _drive(self, feed, prepare, begin, end, stopped) -> None:
        feed.begin_epoch()
        WorkLoop(self._session.dispatcher, feed, prepare, begin, end, stopped=stopped).run()
        feed.end_epoch()

    def _callback_list(self, callbacks, verbose, feed) -> keras.callbacks.CallbackList:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        return keras.callbacks.CallbackList(
            callbacks,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=1,
            steps=feed.num_batches,
            model=self.model,
        )


class _Prediction(NamedTuple):
    steps: int
    outputs: Any

    @property
    def taken(self) -> int:
        return self.steps


def _to_numpy(tensor):
    return tensor.numpy() if isinstance(tensor, tf.Tensor) else tensor
