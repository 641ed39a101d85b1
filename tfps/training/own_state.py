"""What every worker has of its own of the model's variables, and the chief's copy of it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_metrics, errors
from tfps.cluster import failures
from tfps.cluster.calls import WorkerCalls
from tfps.model.stateless_model import StatelessModel
from tfps.training.chief_feed import ChiefFeed
from tfps.training.feeds import Feed
from tfps.worker.own_values import Own, placed


class OwnState:
    """Per worker, the values that are on no server: states of RNNs, and at times metrics.

    The unlisted variables, such as the states of a stateful RNN, begin on every worker with the
    values that the model has. Then each worker goes on with its own, from one `fit`, `evaluate` or
    `predict` to the next. The model has a copy of a worker's values wherever a callback may look:
    of the worker that has just ended a call in a hook of a batch, of worker 0 otherwise. If the
    copy is changed (`reset_state`), all workers go on with what it was changed to.

    Attributes:
      each: per worker, the values for its next call, once `replacement` has put others in place.
      shared: the one state of the metrics that all workers update where the model runs eagerly, a
        list that `each` has as well; None elsewhere.
    """

    def __init__(self, calls: WorkerCalls):
        """Starts with nothing on the workers.

        Args:
          calls: to the workers.
        """
        self._calls = calls
        self.forget()

    def forget(self) -> None:
        """Lets go of the values; workers begin with those of the model again."""
        self.each: list[Own] = []
        self.shared: list[tf.Tensor] | None = None
        self._begin: list[np.ndarray] = []  # the metrics with which a worker begins
        self._variables: list[keras.Variable] = []
        self._copied: list[np.ndarray] = []  # What the model's variables were given last.
        self._replacements: dict[int, list[np.ndarray]] = {}  # worker -> what it goes on with
        self._restored: list[list[np.ndarray]] | None = None

    def begin(
        self,
        program: StatelessModel,
        feed: Feed,
        metrics: list[np.ndarray],
        by_worker: Callable[[int], list[np.ndarray]] | None = None,
    ) -> None:
        """Makes ready for the first call of an epoch, an evaluation or a prediction.

        Args:
          program: the model.
          feed: of the input.
          metrics: the values with which workers begin to carry metric variables; empty if workers
            do not carry metric variables.
          by_worker: a worker's own such values; None if all begin with `metrics`.
        """
        # A model that overrides `metrics` may leave out Keras's own mean of the loss.
        losses = set(map(id, _keras_metrics.loss_variables(program.model)))
        kept_back = [v.path for v in program.unlisted if id(v) not in losses]
        if kept_back and isinstance(feed, ChiefFeed) and self._calls.num_workers > 1:
            warnings.warn(
                f"The model keeps {', '.join(kept_back)} from batch to "
                f"batch, and each of {self._calls.num_workers} workers has its own, but gets "
                "whatever batch is next; train with one worker, or give a dataset_fn",
                stacklevel=2,
            )
        if self._is_new(program):
            kept = self._placed_anew(program)
        else:
            self._place_returned()
            kept = [own.unlisted for own in self.each]
        fresh = [Own([], [], [])] * self._calls.num_workers
        begins, self.shared = by_worker or (lambda worker: metrics), None
        if metrics and program.model.run_eagerly:
            self.shared = [tf.constant(value) for value in begins(0)]
            fresh = [Own(self.shared, [], [])] * self._calls.num_workers
        elif metrics:
            fresh = self._calls.run_on_each(lambda worker: placed(begins(worker), []))
        self._begin = metrics
        self.each = [
            Own([] if f is None else f.metrics, k, []) for f, k in zip(fresh, kept, strict=True)
        ]

    def lost(self, worker: int) -> None:
        """Lets go of what a lost worker had."""
        if worker < len(self.each):
            self.each[worker] = Own([], [], [])
            self._replacements.pop(worker, None)

    def revived(self) -> Callable[[], Own]:
        """What is to be called on a worker that has returned; gives the values that it begins with.

        These are those of the metrics before the first batch, and what the model has of the others.
        """
        metrics, unlisted, shared = self._begin, self._copied, self.shared
        if shared is not None:
            return lambda: placed([], unlisted)._replace(metrics=shared)
        return lambda: placed(metrics, unlisted)

    def _place_returned(self) -> None:
        """Gives values to workers that have returned since the last epoch."""
        if not self._variables:
            return
        new = [w for w in sorted(self._calls.living) if not self.each[w].unlisted]
        revived = self.revived()
        placed_on = self._calls.run_on_each(lambda worker: revived(), new) if new else []
        for worker in new:
            if (own := placed_on[worker]) is not None:
                self.each[worker] = own

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for an evaluation or a prediction, perhaps in a hook of an epoch's batch.

        The epoch then goes on with its own metrics and reports. The unlisted variables go on from
        where the evaluation or prediction has left them, as in Keras.
        """
        kept, shared = self.each, self.shared
        try:
            yield
        finally:
            self.shared = shared
            if kept and len(kept) == len(self.each):
                # The epoch's calls write into this very list.
                kept[:] = [
                    own._replace(unlisted=now.unlisted)
                    for own, now in zip(kept, self.each, strict=True)
                ]
                self.each = kept

    def _is_new(self, program: StatelessModel) -> bool:
        same = list(map(id, self._variables)) == list(map(id, program.unlisted))
        return not self.each or not same or self._is_changed() or self._restored is not None

    def _placed_anew(self, program: StatelessModel) -> list[list[tf.Tensor]]:
        """Gives the workers the model's values, or those that were restored."""
        self._variables, self._replacements = program.unlisted, {}
        values = [[v.numpy() for v in program.unlisted]] * self._calls.num_workers
        if self._restored is not None:
            values, self._restored = self._restored, None
            # If there are more workers now, some begin with the same values.
            values = [values[w % len(values)] for w in range(self._calls.num_workers)]
        placed_on = self._calls.run_on_each(lambda worker: placed([], values[worker]))
        self._copy(values[0])
        return [[] if own is None else own.unlisted for own in placed_on]

    def report(self, reports: list[tf.Tensor]) -> None:
        """Gives each worker the report to which its next call adds its own."""
        pairs = zip(self.each, reports, strict=True)
        self.each[:] = [
            own._replace(report=[] if report is None else [report]) for own, report in pairs
        ]

    def copy(self, worker: int | None = None) -> None:
        """Gives the model the values with which a worker that is not at work goes on.

        Args:
          worker: index; None for the first that lives.
        """
        self._copy(self._following(self._calls.first if worker is None else worker))

    def _following(self, worker: int) -> list[np.ndarray]:
        if worker in self._replacements:
            return self._replacements[worker]
        if worker not in self._calls.living:
            return self._copied
        if not (values := self.each[worker].unlisted):
            return []
        try:
            return self._calls.ask(lambda: [t.numpy() for t in values], workers=[worker])
        except (errors.TaskLost, tf.errors.OpError) as e:
            if isinstance(e, tf.errors.OpError) and not failures.is_of_network(e):
                raise
            return self._copied  # Who is lost, and what is to be done, is found by the next call.

    def _copy(self, values: list[np.ndarray]) -> None:
        self._copied = values
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)

    def load_if_changed(self) -> None:
        """Makes all workers go on with the model's values if they are no longer the copy."""
        if self._is_changed():
            self._copied = [v.numpy() for v in self._variables]
            self._replacements = dict.fromkeys(range(self._calls.num_workers), self._copied)

    def _is_changed(self) -> bool:
        pairs = zip(self._variables, self._copied, strict=True)
        return any(not _are_equal(v.numpy(), copied) for v, copied in pairs)

    def replacement(self, worker: int) -> Callable[[], None]:
        """Has to be called on the chief before a worker's next call.

        Returns:
          What is to be called on the worker before its values are used: it puts in `each` what
          the worker goes on with instead of its own values, if there is such.
        """
        each, values = self.each, self._replacements.pop(worker, None)

        def replace() -> None:
            if values is not None:
                each[worker] = each[worker]._replace(unlisted=placed([], values).unlisted)

        return replace

    # The state of training.

    def export(self) -> list[list[np.ndarray]]:
        """Per worker, the values of its unlisted variables; nothing if there are no such."""
        each = [self._following(worker) for worker in range(len(self.each))]
        return each if any(each) else []

    def restore(self, values: list[list[np.ndarray]]) -> None:
        """Makes workers begin with what `export` has read; to be called when nothing is kept."""
        self._restored = values or None


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    # Values that have become NaN are no change.
    return np.array_equal(one, other) or (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )
