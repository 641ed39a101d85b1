"""`Trainer`: `fit`, `evaluate` and `predict` of a Keras model on a cluster."""

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras, callbacks as callbacks_lib, data, errors, optimizers
from tfps.compression import Codec
from tfps.consistency import Async
from tfps.dispatcher import Dispatcher
from tfps.inference import EvaluateStep, PredictStep, Pull
from tfps.loop import MetricTotals, drive
from tfps.plan import Plan
from tfps.program import Program
from tfps.pull import Puller
from tfps.push import Pusher
from tfps.report import Report
from tfps.step import TrainStep
from tfps.store import ParameterStore
from tfps.strategy import ParameterServerStrategy


def _errors_named(method):
    """Lets a method of `Trainer` raise `TaskLost` where TensorFlow says something else."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with self._dispatcher.errors_named():
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
      consistency: the policy that decides when a worker may start a step.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: ParameterServerStrategy,
        consistency: Async | None = None,
        push: Codec | Callable[[Any], Codec] | None = None,
        pull: Codec | Callable[[Any], Codec] | None = None,
        overlap: int = 0,
        sparse_updates: str = "exact",
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
            computes, then pushes. 1: it computes while the last update is pushed
            and then the next parameters are pulled. 2: pushing and pulling go
            on at the same time as well. Other workers' updates are missed besides;
            the logs' `staleness` counts all.
          sparse_updates: what happens to the rows of an embedding table that a step
            did not look up. "exact": the optimizer updates them with a gradient
            of zero, as Keras does (momentum, weight decay). "lazy": nothing, they
            stay as they are bit by bit, and updates cost by the rows looked up
            instead of by the table.

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
        self.consistency = consistency or Async()
        if overlap not in (0, 1, 2):
            raise errors.ConfigError(f"overlap={overlap!r} must be 0, 1 or 2")
        if sparse_updates not in ("exact", "lazy"):
            raise errors.ConfigError(f'sparse_updates={sparse_updates!r} must be "exact" or "lazy"')
        self._wire = {"push": push, "pull": pull, "lazy": sparse_updates == "lazy"}
        self._overlap = overlap
        self._carries: list = []
        self._dispatcher = Dispatcher(strategy.cluster)
        weakref.finalize(self, self._dispatcher.close)
        self._program: Program | None = None
        self._store: ParameterStore | None = None
        self._trains = False  # whether the store has an optimizer
        self._steps: dict = {}
        self._number = 0  # of the next training step
        _keras.detach_from_strategy(model)

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
        """
        model = self.model
        _keras.check_compiled(model, "fit")
        if model.optimizer is None:
            raise errors.ConfigError("fit needs an optimizer; pass one to model.compile")
        optimizers.require_supported(model.optimizer)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = _keras.split_validation(
                (x, y, sample_weight), validation_split=validation_split
            )
        feed = self._feed(
            x,
            steps_per_epoch,
            y=y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            class_weight=class_weight,
        )
        self._prepare(feed, train=True)
        run = self._cached(
            "fit",
            feed,
            lambda: TrainStep(
                self._program,
                self._puller,
                self._pusher,
                model.optimizer,
                feed.source_spec,
                feed.batch_spec,
                feed.group == 1,
                model.jit_compile,
                self._overlap,
            ),
        )
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
        self._store.load_if_changed()
        callbacks.on_train_begin()
        self._store.load_if_changed()
        logs = None
        for epoch in range(_keras.initial_epoch(model, initial_epoch), epochs):
            logs = self._epoch(epoch, feed, run, callbacks)
            if validate and _keras.should_evaluate(model, epoch, validation_freq):
                logs.update({f"val_{k}": v for k, v in validate(callbacks).items()})
            # TensorBoard(update_freq=n) would write an epoch's summaries only after
            # a multiple of n batches (Keras 3.15).
            with tf.summary.record_if(True):
                callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
            self._store.load_if_changed()
        if epochs > 0 and optimizers.inner(model.optimizer).use_ema:
            self._store.load_if_changed()
            self._store.finalize()
            self._store.fetch()
        callbacks.on_train_end(logs)
        return model.history

    def _epoch(self, epoch, feed, run, callbacks) -> dict:
        model, store = self.model, self._store
        watched = any(map(callbacks_lib.has_batch_hooks, callbacks.callbacks))
        reads_weights = any(map(callbacks_lib.reads_weights_in_batches, callbacks.callbacks))
        totals = MetricTotals(self._program)
        handles = store.handles()
        applied = store.iterations()
        carries = self._start(run, handles)

        def prepare(worker, work):
            number, self._number = self._number, self._number + work.count
            rate = optimizers.settable_rate(model.optimizer)

            def call():
                vector, carries[worker] = run(
                    handles, work.source, carries[worker], work.count, number, rate
                )
                return Report.of(vector, run.initial)

            return call

        def end(last, first, report):
            nonlocal applied
            applied += int(report.tally.pushes)
            totals.add(report)
            if not watched:
                return
            _keras.set_iterations(model.optimizer, applied)
            if reads_weights:
                store.fetch()
            callbacks.on_train_batch_end(last, totals.logs())
            if reads_weights:
                store.load_if_changed()

        def begin(first):
            callbacks.on_train_batch_begin(first)
            if reads_weights:
                store.load_if_changed()

        callbacks.on_epoch_begin(epoch)
        store.load_if_changed()
        started = time.perf_counter()
        steps = drive(
            self._dispatcher,
            feed,
            prepare,
            begin,
            end,
            self.consistency.may_start,
            stopped=lambda: model.stop_training,
        )
        self._finish(run, handles, totals)
        seconds = time.perf_counter() - started
        if not totals.examples:
            raise errors.DataError("fit was given no batch; the input is empty")
        store.fetch()
        # Updates that loss scaling skipped are not counted.
        _keras.set_iterations(model.optimizer, store.iterations())
        tally = totals.tally
        return {
            **totals.logs(),
            "examples_per_second": totals.examples / seconds,
            "steps_per_second": steps / seconds,
            "staleness": tally.staleness / max(1.0, tally.pushes),
            "staleness_max": tally.max_staleness,
            "push_bytes_per_step": store.plan.push_bytes + tally.bytes_up / steps,
            "pull_bytes_per_step": store.plan.pull_bytes + tally.bytes_down / steps,
        }

    def _start(self, run, handles) -> list:
        """What each worker carries into an epoch: residuals survive, parameters are pulled anew."""
        before = self._carries or [None] * self._dispatcher.num_workers
        self._carries = self._dispatcher.run_on_each(lambda w: run.start(handles, before[w]))
        return self._carries

    def _finish(self, run, handles, totals) -> None:
        """Pushes what workers still have at the end of an epoch."""
        rate = optimizers.settable_rate(self.model.optimizer)
        vectors = self._dispatcher.run_on_each(
            lambda w: run.finish(handles, self._carries[w], rate)
        )
        for vector in vectors:
            if vector is not None:
                totals.add(Report.of(vector, run.initial))

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
        feed = self._feed(
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
        feed = self._feed(x, steps, batch_size=batch_size, shuffle=False, group=1)
        self._prepare(feed, train=False, targets=False)
        model = self.model
        run = self._cached(
            "predict",
            feed,
            lambda: PredictStep(self._program, self._puller, feed.source_spec, model.jit_compile),
        )
        callbacks = self._callback_list(callbacks, verbose, feed)
        values, handles = self._pull(), self._store.handles()
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
        drive(
            self._dispatcher,
            feed,
            prepare,
            callbacks.on_predict_batch_begin,
            end,
            stopped=lambda: model.stop_predicting,
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
        feed = self._feed(
            x, steps, y=y, sample_weight=sample_weight, batch_size=batch_size, shuffle=False
        )
        return lambda callbacks: self._evaluate(feed, callbacks, verbose=0)

    def _evaluate(self, feed, callbacks, verbose) -> dict:
        self._prepare(feed, train=False)
        model = self.model
        run = self._cached(
            "evaluate",
            feed,
            lambda: EvaluateStep(
                self._program,
                self._puller,
                feed.source_spec,
                feed.group == 1,
                model.jit_compile,
            ),
        )
        callbacks = self._callback_list(callbacks, verbose, feed)
        values, handles = self._pull(), self._store.handles()
        totals = MetricTotals(self._program)

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
        drive(
            self._dispatcher,
            feed,
            prepare,
            callbacks.on_test_batch_begin,
            end,
            stopped=lambda: model.stop_evaluating,
        )
        if not totals.examples:
            raise errors.DataError("evaluate was given no batch; the input is empty")
        logs = totals.logs()
        callbacks.on_test_end(logs)
        return logs

    # What all three have in common.

    def _feed(self, x, steps, group=None, **arguments):
        return data.feed(
            x,
            self.strategy.cluster.num_workers,
            steps,
            group or self.model.steps_per_execution,
            **arguments,
        )

    def _prepare(self, feed, train: bool, targets: bool = True) -> None:
        """Builds the model, reads it, and creates and fills the servers' variables."""
        _keras.build(self.model, feed.batch_spec, targets)
        if self._program and not self._program.is_current():
            # Compiled anew, or frozen in part: as in Keras, another training.
            self._program = self._store = None
        if self._store and (self._trains or not train):
            return
        self._program = self._program or Program(self.model)
        optimizer = self.model.optimizer if train else None
        inspection = self._program.inspect(feed.batch_spec, train)
        self._steps.clear()
        self._carries = []
        plan = Plan(self.strategy, self._program, optimizer, inspection, **self._wire)
        self._store = ParameterStore(plan, optimizer)
        self._puller = Puller(self._store, optimizer)
        self._pusher = Pusher(self._store, self._overlap > 0, bool(self.model.jit_compile))
        self.strategy.placed(plan.placement())
        self._trains = train

    def _cached(self, kind, feed, make):
        """A traced step for this form of input, made once."""
        key = (kind, repr(feed.batch_spec), type(feed.source_spec), feed.group == 1)
        if key not in self._steps:
            self._steps[key] = make()
        return self._steps[key]

    def _pull(self) -> list:
        """The weights, on every worker."""
        self._store.load_if_changed()
        if "pull" not in self._steps:
            self._steps["pull"] = Pull(self._puller)
        pull, handles = self._steps["pull"], self._store.handles()
        return self._dispatcher.run_on_each(lambda worker: pull(handles))

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


def _to_numpy(tensor):
    return tensor.numpy() if isinstance(tensor, tf.Tensor) else tensor
