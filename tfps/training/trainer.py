"""`Trainer`: `fit`, `evaluate` and `predict` of a Keras model on a cluster."""

import contextlib
import functools
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfps import _keras_metrics, _keras_models, _keras_optimizers, _keras_variables, errors
from tfps.cluster import sockets
from tfps.cluster.loss_policy import LossPolicy
from tfps.embeddings.layer import HashEmbedding
from tfps.model import optimizer_traits
from tfps.planning.profile import Profile
from tfps.strategy import ParameterServerStrategy
from tfps.training import single_batch
from tfps.training.consistency import Async
from tfps.training.evaluation import EvaluationRun
from tfps.training.feeds import Feed
from tfps.training.fit_run import FitRun
from tfps.training.hook_calls import forgotten_if_interrupted
from tfps.training.hooks import Hooks
from tfps.training.input import is_read_by_workers
from tfps.training.placing import LayerDevice, Placing
from tfps.training.policy import ConsistencyPolicy
from tfps.training.prediction import PredictionRun
from tfps.training.profile_run import CODECS, ProfileRun, endless
from tfps.training.served_model import Codecs, Traffic
from tfps.training.server_side import require_local
from tfps.training.session import Session
from tfps.training.snapshots import Snapshots, of as snapshots_of
from tfps.training.snapshotter import Past, Snapshotter
from tfps.training.training_state import TrainingState

# A list of Keras callbacks, a `keras.callbacks.CallbackList`, or None.
Callbacks = Any


def _errors_named(method):
    """Makes a method of `Trainer` raise `TaskLost` where TensorFlow raises an error of its own.

    When the method has ended, it does not read its input any more.
    """

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with self._session.closing_feeds(), self._session.calls.errors_named():
            return method(self, *args, **kwargs)

    return call


class Trainer:
    """Trains a compiled Keras 3 model on the workers of a strategy's cluster.

    Arguments and meanings are those of `keras.Model.fit`, `evaluate` and `predict`. Outside of
    `fit` the model and its optimizer are the truth: training begins with the weights, the slots and
    the `iterations` that they have, whether plain Keras, a file or another Trainer gave them. At
    the end of `fit` they have what the servers have. While `fit` runs the truth is on the servers.
    A Keras variable of the model or its optimizer is brought to the chief when a callback looks at
    it, and training goes on with what a callback assigns to it. A learning rate that is assigned
    to `model.optimizer` is used from the next step on.

    The slots of variables that are too large for the chief (`max_chief_bytes`) stay on the servers.

    Attributes:
      model: the Keras model.
      strategy: the strategy.
      stats: name -> a value for each epoch of the last `fit`, over all workers together:
        `examples_per_second` and `steps_per_second`; `staleness` and `staleness_max`, the number of
        updates that a push has missed, on average and at most; `push_bytes_per_step` and
        `pull_bytes_per_step`, what a worker sends and receives in a step as the codecs predict it;
        `workers`, how many live at the end of the epoch; `lost_workers` and `lost_ps`, how often
        one was lost; `repeated_units`, batches that were done again for that, and
        `refused_pushes`, those that came too late; `lost_residuals`, how often what a worker's
        codecs remembered was lost.
        With a TensorBoard callback they are shown as the run `tfps`.
      consistency: the policy that decides which worker may step when: `Async`, `BoundedStaleness`,
        `Sync`, `LocalSteps`, or a `consistency.ConsistencyPolicy` of the user's own. Another policy
        may be assigned at any time, between epochs or by a callback. Workers then finish and push
        what they are doing, and train on the batches that they hold already (`overlap`), before the
        new policy is in force.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: ParameterServerStrategy,
        consistency: ConsistencyPolicy | None = None,
        push: Codecs = None,
        pull: Codecs = None,
        overlap: int = 0,
        sparse_updates: str = "exact",
        push_warmup: int = 0,
        step_timeout: float = 3600.0,
        log_stats: bool = False,
        devices_per_worker: int | None = None,
        layer_device: LayerDevice | None = None,
        snapshots: Snapshots | str | os.PathLike | None = None,
        min_workers: int = 1,
        task_timeout: float = 300.0,
        on_lost_ps: str = "wait",
        spare: Sequence[str] = (),
        ledger: str | os.PathLike | None = None,
        data: str = "exactly_once",
    ):
        """Checks the arguments; the servers are filled when training starts.

        Args:
          model: compiled, built or not.
          strategy: connected to the cluster.
          consistency: the policy; None for `Async()`.
          push: the codec of the gradients, worker to ps, or its text (`tfps.compression.parse`), or
            a function of the variable that gives one of the two. None sends gradients as they are.
          pull: the codec of the parameters, ps to worker, likewise; also a `Difference`. With
            "auto" for one of the two or for both, the first steps are made without a codec; then
            the links are measured, and the planner says which codec pays, or that none does. Where
            the links change, it is asked again. A codec that needs a warm-up is chosen for
            gradients only if there was one (`push_warmup`).
          overlap: how many of its own updates a worker's gradient may miss, so that the worker
            computes while the network works. With 0, a step pulls, then computes, then pushes. With
            1, a worker takes the next batch and pulls the parameters for it while it computes, and
            each part of a push leaves when the backward pass has come to it. With 2, a push waits
            for the next step and goes on from that step's beginning, which on a slow network saves
            the time of the forward pass. A gradient misses other workers' updates besides; the
            logs' `staleness` counts all of them. Overlap is at its best where a call is one step
            (`steps_per_execution=1`) on plain tensors. It has no effect in rounds (`Sync`) and with
            `LocalSteps`, which has a `delay` of its own.
          sparse_updates: what happens to the rows of an embedding table that a step did not look
            up. With "exact", the optimizer updates them with a gradient of zero, as Keras does
            (momentum, weight decay). With "lazy", they stay as they are bit by bit, and the cost of
            an update grows with the rows looked up instead of with the table. In both cases the
            gradients of a row that a batch looks up several times are added up first, as in a dense
            gradient; plain Keras squares each of them for itself, which matters to learning rates.
          push_warmup: how many pushes the servers apply (`optimizer.iterations`) before the codecs
            of `push` begin. Until then workers send gradients as they are; only the rows of tables,
            whose codecs have no feedback, always pass through their codec. When the warm-up
            ends, Adam and AdamW freeze the second moments of whatever passes through a codec with
            feedback (Tang et al., "1-bit Adam", 2021). That makes their update linear in the
            gradient, as feedback needs it. With 0, codecs are used from the start and nothing is
            frozen. A tenth of the training is a good choice. `LocalSteps` has no warm-up.
          step_timeout: how many seconds a call on a worker may take. A call is
            `steps_per_execution` steps, or an exchange of `LocalSteps`; the first call includes
            its compilation. After that time `fit`, `evaluate` and `predict` raise `StepTimeout`.
          log_stats: whether the logs of `fit` carry the entries of `stats` besides Keras's own.
          devices_per_worker: over how many of its devices a worker splits each batch. The worker
            adds up their gradients and pushes once. None for all GPUs that a worker has, for its
            CPU if it has no GPU, and for no split if the model names devices for its layers. With
            `run_eagerly` the chief computes, on its CPU.
          layer_device: a function from a layer to the device that computes it, such as "GPU:1" (a
            worker's own), or None for any (model parallelism). A model's own code may say the same
            `tf.device("GPU:1")`.
          snapshots: what is saved of training, where and how often, so that the same program,
            started again, goes on there, and training survives the loss of a ps. A folder stands
            for `Snapshots(folder)`. None saves nothing.
          min_workers: how many workers have to live. When a worker is lost, its batches go to the
            others, and it takes part again when its process is back; with fewer than this many,
            training waits.
          task_timeout: how many seconds to wait for workers below `min_workers`, or for a lost ps,
            to return. After that time `TaskLost` is raised.
          on_lost_ps: what becomes of the part of a ps that does not return, where there are
            `snapshots`. With "wait", it is waited for. With "reshard", one of the other ps serves
            that part as well from 30 s after the loss on, on a further port of its host.
          spare: addresses, `host:port`, of servers that wait to take a lost ps's place, beyond the
            tasks `spare` of the cluster. They do so after 10 s, whatever `on_lost_ps` says.
          ledger: a folder that the chief and every ps can write to, in which they note what becomes
            of each batch on each ps; `python -m tfps.ledger check FOLDER` says whether each was
            applied exactly once. It is for tests and for finding faults, since every push costs a
            line. None notes nothing and costs nothing.
          data: what is asked of the input where `snapshots` are taken. With "exactly_once", `fit`
            refuses input that could not go on exactly after a loss: a generator, and a
            `dataset_fn` or `Splits` whose first two batches differ when they are read twice. With
            "at_least_once" it takes them. After a loss, batches of such input may be trained on
            again, and others in their place. Without snapshots nothing is asked.

        Raises:
          ConfigError: an argument is none of these.
        """
        if not isinstance(strategy, ParameterServerStrategy):
            raise errors.ConfigError(
                f"strategy is a {type(strategy).__name__}; Trainer needs a "
                "tfps.ParameterServerStrategy"
            )
        if data not in ("exactly_once", "at_least_once"):
            raise errors.ConfigError(f'data={data!r} must be "exactly_once" or "at_least_once"')
        self.model = model
        self.strategy = strategy
        self._is_exact = data == "exactly_once"
        self.stats: dict[str, list[float]] = {}
        self._log_stats = log_stats
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
        traffic = Traffic(push, pull, lazy=sparse_updates == "lazy")
        placing = Placing(devices_per_worker, layer_device)
        settings = snapshots_of(snapshots)
        self._session = Session(
            model,
            strategy,
            overlap,
            traffic,
            placing,
            push_warmup,
            step_timeout,
            LossPolicy.of(min_workers, task_timeout, on_lost_ps, spare),
            ledger,
            None if settings is None else settings.piece_bytes,
        )
        weakref.finalize(self, self._session.calls.close)
        self._snapshotter = None if settings is None else Snapshotter(settings, self._session)
        self.consistency = consistency or Async()
        _keras_models.detach_from_strategy(model)

    @property
    def consistency(self) -> ConsistencyPolicy:
        """The policy in force."""
        return self._consistency

    @consistency.setter
    def consistency(self, policy: ConsistencyPolicy) -> None:
        if not isinstance(policy, ConsistencyPolicy):
            raise errors.ConfigError(
                f"consistency={policy!r} is no policy; use tfps.Async(), BoundedStaleness(bound), "
                "Sync(backups), LocalSteps(steps) or a subclass of "
                "tfps.consistency.ConsistencyPolicy"
            )
        policy.require_workers(self.strategy.cluster.num_workers)
        exchange = policy.exchange
        copies = exchange.outer is not None
        if (exchange.in_rounds, copies) != (policy.in_rounds, bool(policy.local_steps)):
            raise errors.ConfigError(
                f"{policy!r} has in_rounds={policy.in_rounds} and "
                f"local_steps={policy.local_steps}, but {exchange}; in_rounds must be the same in "
                "both, and local_steps above 0 exactly if there is an outer optimizer"
            )
        if copies and (optimizer := getattr(self.model, "optimizer", None)):
            # Otherwise the error would end the epoch in which a callback assigns the policy.
            session = self._session
            require_local(optimizer, session.served.store.plan if session.is_served else None)
        self._consistency = policy

    @property
    def state(self) -> TrainingState:
        """What training remembers, on the servers, on the workers and here.

        `state.export()` gives it as values, and `state.restore(exported)` makes the next `fit` go
        on there: in this trainer, or in another one, on another cluster.
        """
        return self._session.state

    @_errors_named
    def table(self, layer: HashEmbedding) -> tuple[np.ndarray, np.ndarray]:
        """All rows that the servers have of a layer of the model; of the layer before `fit`.

        Args:
          layer: of the model.

        Returns:
          (int64 [n], keys in no order, which `HashEmbedding` makes of ids; float32 [n, output_dim],
          rows), without what has expired.
        """
        return self._session.table(layer)

    @_errors_named
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callbacks = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
    ) -> keras.callbacks.History:
        """Trains the model; see `keras.Model.fit` for the arguments.

        Args:
          x: what Keras takes; or `dataset_fn(context) -> tf.data.Dataset`, called once for each
            worker with a `tfps.Context`; or `tfps.data.Splits`.
          steps_per_epoch: batches in an epoch, over all workers together. By default the input
            once; with a `dataset_fn`, each worker's dataset once. As in Keras, batches that the
            chief reads come in whole calls of `steps_per_execution`.

        Returns:
          The history, with the keys that Keras gives it; the others are in `stats`.

        Raises:
          ConfigError: model, optimizer or data cannot be trained here.
          WorkerError: a step failed; names the worker.
          TaskLost: a worker or ps went away.
          StepTimeout: a call took longer than `step_timeout`.
        """
        model, session = self.model, self._session
        _keras_models.check_compiled(model, "fit")
        most = keras.config.max_epochs()
        if most and most < epochs:
            warnings.warn(f"Limiting epochs to {most}", stacklevel=3)
            epochs = most
        self._require_optimizer("fit")
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = _keras_models.split_validation(
                (x, y, sample_weight), validation_split=validation_split
            )
        order = None
        if self._snapshotter is not None:
            self._snapshotter.begin_fit()
            order = self._snapshotter.order
        session.ledger.begin_fit(None if order is None else self._snapshots.fit_number)
        feed = session.feed(
            x,
            steps_per_epoch,
            y=y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            class_weight=class_weight,
            order=order,
        )
        feed.reset()  # A `PyDataset` that reorders its batches does so now, as in Keras.
        if self._snapshotter is not None and self._is_exact:
            feed.require_repeatable()
        past = self._prepare(feed)
        if past is not None and not self._snapshots.resumes(past):
            return self._ended_before(past)
        validation: Callable[[], Feed] | None = None
        if validation_data is not None:
            size = validation_batch_size or batch_size
            validation = functools.cache(
                lambda: self._validation_feed(validation_data, size, validation_steps)
            )
            if not isinstance(validation_data, Iterator):
                validation()  # What is wrong with it is said before training.
        model.stop_training = False
        self.stats = {}
        hooks = Hooks(
            self._callback_list(callbacks, verbose, feed, epochs, history=True),
            lambda: session.served.store.copy,
        )

        def finalize() -> None:
            session.calls.ask(lambda: session.served.store.finalize(model.optimizer))

        leaving = self._ending_in_order()
        aside = _keras_variables.keras_functions_aside(model)
        with leaving, aside, contextlib.ExitStack() as following:
            following.enter_context(self._following())
            hooks.train_begin()
            if not session.served.program.has_rates():
                # The servers' optimizer is made anew, for the schedule that a hook has assigned.
                following.close()
                session.prepare(feed, train=True)
                following.enter_context(self._following())
            run = FitRun(
                session,
                feed,
                hooks,
                lambda: self.consistency,
                self._snapshotter,
                validate=self._validation(validation, validation_freq, hooks),
                finalize=finalize if epochs > 0 else lambda: None,
                log_stats=self._log_stats,
            )
            self.stats = run.stats
            logs = run.run(initial_epoch, epochs)
        if epochs > 0:
            _keras_optimizers.finalize(model)
        session.served.program.move_seeds()
        hooks.train_end(logs)
        return model.history

    def _require_optimizer(self, method: str) -> None:
        """Raises `ConfigError` unless there is an optimizer that the servers can apply."""
        # Which optimizers an own `train_step` uses is found by tracing it.
        if not _keras_models.overrides(self.model, "train_step"):
            if self.model.optimizer is None:
                raise errors.ConfigError(f"{method} needs an optimizer; pass one to model.compile")
            optimizer_traits.require_supported(self.model.optimizer, self.strategy.cluster.num_ps)

    @property
    def _snapshots(self) -> Snapshotter:
        assert self._snapshotter is not None
        return self._snapshotter

    def _leaves(self) -> bool:
        """Whether the process was told to end, and does so at the next cut."""
        return self._snapshotter is not None and self._snapshotter.is_leaving

    def _prepare(self, feed: Feed) -> Past | None:
        """Brings the model to the servers; returns the snapshot whose state they have, if any."""
        session = self._session
        if self._snapshotter is not None:
            for past in self._snapshotter.found():
                session.state.restore(past.state)
                try:
                    session.prepare(feed, train=True)
                except errors.SnapshotDamaged as e:
                    self._snapshotter.skipped(past.manifest.id, e)
                    continue
                except errors.ConfigError as e:
                    raise self._snapshotter.unfit(past, e) from e
                self._snapshotter.say_resumed(past)
                session.ledger.resumed(str(past.manifest.id))
                return past
        session.prepare(feed, train=True)
        return None

    def _ending_in_order(self) -> contextlib.AbstractContextManager[None]:
        own = self._snapshotter
        return contextlib.nullcontext() if own is None else own.ending_in_order()

    def _ended_before(self, past: Past) -> keras.callbacks.History:
        """The history of a `fit` that had ended before the program was started again."""
        self._session.state.begin_fit()
        self._session.state.end_fit()
        history = keras.callbacks.History()
        history.set_model(self.model)
        history.on_train_begin()
        for epoch, logs in self._snapshots.history_of(self._snapshots.fit_number):
            history.on_epoch_end(epoch, logs)
        self.model.history = history
        return history

    def _following(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model follows the servers, beside an optimizer that is built."""
        store = self._session.served.store
        store.optimizer_copy.build()
        return store.copy.following(self._ps_answer, self._session.recount)

    def _ps_answer(self, error: BaseException) -> bool:
        """Whether the servers can be asked after an error for what they have."""
        if isinstance(error, errors.StepTimeout):
            return False  # A ps that hangs accepts connections.
        addresses = self.strategy.cluster.spec["ps"]
        return all(sockets.answers(address, timeout=2.0) for address in addresses)

    @_errors_named
    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Callbacks = None,
        return_dict: bool = False,
    ) -> Any:
        """Loss and metrics over the input, each example once; see `keras.Model.evaluate`.

        The workers share the batches. With a `dataset_fn`, each worker's dataset is visited once.
        """
        _keras_models.check_compiled(self.model, "evaluate")
        feed = self._session.feed(
            x, steps, y=y, sample_weight=sample_weight, batch_size=batch_size, shuffle=False
        )
        logs = self._evaluate(feed, callbacks, verbose)
        return logs if return_dict else _keras_metrics.flatten_metrics(self.model, logs)

    @_errors_named
    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Callbacks = None,
    ) -> Any:
        """The model's outputs, in the order of the input; see `keras.Model.predict`.

        Raises:
          DataError: `x` is a `dataset_fn` or `Splits`, whose batches have no order, or there was no
            batch.
        """
        if is_read_by_workers(x):
            raise errors.DataError(
                "predict was given a dataset_fn or Splits, whose batches have no order among the "
                "workers; give arrays or one Dataset"
            )
        feed = self._session.feed(x, steps, batch_size=batch_size, shuffle=False, group=1)
        return self._predict(feed, callbacks, verbose)

    def _predict(self, feed: Feed, callbacks: Callbacks, verbose: str | int) -> Any:
        session = self._session
        session.prepare(feed, train=False, targets=False)
        callbacks = self._callback_list(callbacks, verbose, feed)
        copy = session.served.store.copy
        self.model.stop_predicting = False
        with copy.hook():
            callbacks.on_predict_begin()
        outputs = PredictionRun(session, feed, callbacks).predict()
        session.served.program.move_seeds()
        with copy.hook():
            callbacks.on_predict_end()
        if not outputs:
            raise errors.DataError("predict was given no batch; the input is empty")
        return _keras_models.concatenated(outputs)

    @_errors_named
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One update from one batch, on one worker; see `keras.Model.train_on_batch`.

        Each call waits for the whole way to a worker and back, while the other workers have
        nothing to do, so `fit` is much faster. As in Keras, the loss and the metrics are those of
        this batch.

        Raises:
          ConfigError: the model cannot be trained here, `fit` runs, or there are `snapshots`, which
            belong to the epochs of `fit`.
          ValueError: Keras's own, if both weights are given.
        """
        _keras_models.check_compiled(self.model, "train_on_batch")
        if self._snapshotter is not None:
            raise errors.ConfigError(
                "train_on_batch takes no snapshots, which belong to the epochs of fit; use fit, or "
                "a Trainer without snapshots"
            )
        self._require_optimizer("train_on_batch")
        sample_weight = _keras_models.batch_weights(y, sample_weight, class_weight)
        feed = single_batch.feed_of_batch(self._session, x, y, sample_weight)
        logs = single_batch.train(self._session, feed, lambda: self.consistency, self._following)
        return logs if return_dict else _keras_metrics.flatten_metrics(self.model, logs)

    @_errors_named
    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Loss and metrics of one batch, on one worker; see `keras.Model.test_on_batch`."""
        _keras_models.check_compiled(self.model, "test_on_batch")
        feed = single_batch.feed_of_batch(self._session, x, y, sample_weight)
        logs = self._evaluate(feed, None, verbose=0, final=False)
        return logs if return_dict else _keras_metrics.flatten_metrics(self.model, logs)

    @_errors_named
    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for one batch, on one worker; see `keras.Model.predict_on_batch`."""
        return self._predict(single_batch.feed_of_batch(self._session, x), None, verbose=0)

    @_errors_named
    def profile(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        seconds: float = 40.0,
        codecs: Sequence[str] = CODECS,
    ) -> Profile:
        """Measures what the planner (`tfps.plan`) has to know of the model's training.

        The model is trained for some steps; its weights are other ones afterwards. The strategy's
        cluster must be `LocalCluster(workers=1, ps=1, processes=True)`. Everything is measured as
        processor time, so other programs on the machine disturb it little.

        Args:
          x: arrays, a `tf.data.Dataset` or a `dataset_fn`, as for `fit`.
          y: likewise.
          batch_size: likewise.
          seconds: that the measurement should take, besides what tracing takes.
          codecs: texts of the codecs that are measured.

        Raises:
          ConfigError: the cluster is another one, or a codec is unknown.
          DataError: the input is of another kind, or empty.
        """

        def make() -> Trainer:
            lazy = "lazy" if self._session.is_lazy else "exact"
            return Trainer(self.model, self.strategy, sparse_updates=lazy)

        run = ProfileRun(
            make, lambda trainer: trainer._session, self.strategy.cluster, seconds, codecs
        )
        return run.run(self.model, *endless(x, y, batch_size))

    def _validation(
        self, feed: Callable[[], Feed] | None, frequency: int | list[int], hooks: Hooks
    ) -> Callable[[int], dict[str, float] | None]:
        """A function from the index of an epoch to what its validation gives; None without one.

        Args:
          feed: gives the feed. As in Keras, that of a generator begins with the first validation,
            where the generator then is.
          frequency: see `fit`.
          hooks: of the `fit`.
        """

        def validate(epoch: int) -> dict[str, float] | None:
            if feed is None or not _keras_models.should_evaluate(self.model, epoch, frequency):
                return None
            copy = self._session.served.store.copy
            with forgotten_if_interrupted(hooks.callbacks.callbacks, copy):
                return self._evaluate(feed(), hooks.callbacks, verbose=0, validates=True)

        return validate

    def _validation_feed(self, validation_data, batch_size, steps) -> Feed:
        if is_read_by_workers(validation_data):
            x, y, sample_weight = validation_data, None, None
        else:
            x, y, sample_weight = _keras_models.unpack_batch(validation_data)
        return self._session.feed(
            x,
            steps,
            y=y,
            sample_weight=sample_weight,
            batch_size=None if is_read_by_workers(x) else batch_size,
            shuffle=False,
        )

    def _evaluate(
        self,
        feed: Feed,
        callbacks: Callbacks,
        verbose: str | int,
        validates: bool = False,
        final: bool = True,
    ) -> dict[str, float]:
        """Evaluates.

        Args:
          feed: of the input.
          callbacks, verbose: as the user gave them.
          validates: whether this is within `fit`, which an input without a batch does not end.
          final: see `MetricTotals.logs`.
        """
        session = self._session
        session.prepare(feed, train=False)
        callbacks = self._callback_list(callbacks, verbose, feed)
        copy = session.served.store.copy
        self.model.stop_evaluating = False
        with copy.hook():  # What this hook changes is what is evaluated.
            callbacks.on_test_begin()
        leaves = self._leaves
        totals = EvaluationRun(session, feed, callbacks, leaves).evaluate()
        session.served.program.move_seeds()
        is_empty = not totals.examples and not self.model.stop_evaluating and not leaves()
        if is_empty and not validates:
            raise errors.DataError("evaluate was given no batch; the input is empty")
        if is_empty:
            warnings.warn(
                "Your input ran out of data; validation_data has no batch, so there are no val_ "
                "logs",
                stacklevel=2,
            )
        logs = {} if is_empty else totals.logs(final)
        with copy.hook():
            callbacks.on_test_end(logs)
        return logs

    def _callback_list(
        self,
        callbacks: Callbacks,
        verbose: str | int,
        feed: Feed,
        epochs: int = 1,
        history: bool = False,
    ) -> keras.callbacks.CallbackList:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        return keras.callbacks.CallbackList(
            callbacks,
            add_history=history,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=feed.num_batches,
            model=self.model,
        )
