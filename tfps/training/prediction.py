"""Predicting with a model on the workers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfps import _keras_models, _tf_functions
from tfps.training.feeds import Feed, Work
from tfps.training.given import Redo
from tfps.training.session import Session
from tfps.training.work_loop import WorkLoop


class Prediction(NamedTuple):
    """The `work_loop.Result` of a call: the outputs for one batch.

    Attributes:
      outputs: nested tensors of the chief.
      worker: index of the worker.
    """

    outputs: Any
    worker: int

    @property
    def steps(self) -> int:
        """One batch was used."""
        return 1

    @property
    def taken(self) -> int:
        """One batch was taken."""
        return 1

    @property
    def weight(self) -> float:
        """Nothing, since a prediction takes part in no round."""
        return 0.0

    def counted(self) -> "Prediction":
        """All of it, since outputs are not counted."""
        return self


class PredictionRun:
    """A `work_loop.Run` that predicts every batch with the same parameters.

    A call is for one batch, but the user's hooks are called as Keras calls them: once for
    `steps_per_execution` batches, and after batches in the order of the input. What workers were
    doing when the hook after a batch stops the prediction is left out.
    """

    def __init__(self, session: Session, feed: Feed, callbacks: keras.callbacks.CallbackList):
        """Traces the step, unless that has been done before, and pulls the parameters.

        Args:
          session: prepared.
          feed: of single batches.
          callbacks: of the user.
        """
        self._session, self._own = session, session.state.own
        self._feed = feed
        self._callbacks = callbacks
        self._step = session.steps.prediction(feed)
        self._pulled = session.pull()
        self._handles = session.served.store.handles()
        self._outputs: dict[int, Any] = {}
        self._group = session.model.steps_per_execution
        self._ended: dict[int, int] = {}  # group of batches -> how many of them are done
        self._begun = 0  # batches that were given out
        self._is_over = False  # whether the hook after a batch has stopped the prediction
        self._given: dict[int, Work] = {}  # worker -> what it is at
        self._told = 0  # groups of which the hook has been called

    def predict(self) -> list:
        """Runs over the feed; returns the outputs of its batches, in the order of the input."""
        self._feed.begin_epoch()
        own = self._own
        with own.aside():
            own.begin(self._session.served.program, self._feed, [])
            WorkLoop(self._session.calls, self._feed, self).run()
            for group in sorted(self._ended):
                self._end(group)
            own.copy()
        self._feed.end_epoch()
        told = range(self._told * self._group)
        return [self._outputs[first] for first in told if first in self._outputs]

    def call(self, worker: int, work: Work) -> Callable[[], Prediction]:
        """See `work_loop.Run`."""

        step, handles, pulled = self._step, self._handles, self._pulled[worker]
        each, number = self._own.each, self._session.number_batches(1)
        self._given[worker] = work
        replace = self._own.replacement(worker)

        def call() -> Prediction:
            replace()
            outputs, each[worker] = step(handles, pulled, work.source, each[worker], number)
            return Prediction(keras.tree.map_structure(_here, outputs), worker)

        return call

    def abandoned(self) -> None:
        """See `work_loop.Run`; nobody waits for the servers' answers."""

    def completed(self, worker: int, work: Work, result: Any) -> None:
        """See `work_loop.Run`."""
        self._given.pop(worker, None)

    def lost(self, worker: int, redo: Redo | None) -> list[Redo]:
        """See `work_loop.Run`; the batch keeps its place in the order of the input."""
        self._own.lost(worker)
        work = self._given.pop(worker, None)
        redos = [] if redo is None else [redo]
        if work is not None:
            redos.append(Redo(work, 0, 1, 0, frozenset(), counts=True, open=True))
        return redos

    def redo(self, worker: int, redo: Redo) -> tuple[Work, Callable[[], Prediction]]:
        """See `work_loop.Run`."""
        work = self._feed.repeat(redo.work, 0, worker)
        call = self.call(worker, work)
        del self._given[worker]
        return work, call

    def redo_ended(self, worker: int, work: Work, taken: int) -> None:
        """See `work_loop.Run`."""
        self._feed.done(worker, work, taken)

    def counts(self, result: Any) -> None:
        """See `work_loop.Run`; every batch is of a call that has not ended."""

    def leaving(self, worker: int) -> None:
        """See `work_loop.Run`; the worker is soon lost, and its batches are computed again."""

    def left(self, worker: int, value: Any) -> None:
        """See `work_loop.Run`; no worker hands back anything."""

    def returned(self, worker: int) -> Callable[[], Any]:
        """See `work_loop.Run`; the worker pulls the parameters, which are still the same."""
        del worker
        pull, handles = self._session.steps.pull(), self._handles
        revived = self._own.revived()
        return lambda: (pull(handles), revived())

    def begins(self, worker: int, value: Any) -> None:
        """See `work_loop.Run`."""
        self._pulled[worker], self._own.each[worker] = value

    def began(self, first: int) -> None:
        """See `work_loop.Run`."""
        self._begun = first + 1
        if first % self._group == 0:
            self._callbacks.on_predict_batch_begin(first)
            self._own.load_if_changed()

    def ended(self, last: int, first: int, result: Any) -> None:
        """See `work_loop.Run`."""
        del last
        self._outputs[first] = result.outputs
        self._own.copy(result.worker)
        group = first // self._group
        self._ended[group] = self._ended.get(group, 0) + 1
        while self._ended.get(self._told) == self._group and not self._is_over:
            self._end(self._told)

    def _end(self, group: int) -> None:
        """Calls the hook after a group of batches; the last group may have fewer."""
        if self._is_over:
            return
        del self._ended[group]
        self._told += 1
        begin = group * self._group
        batches = range(begin, begin + self._group)
        parts = [self._outputs[i] for i in batches if i in self._outputs]
        outputs = parts[0] if len(parts) == 1 else _keras_models.concatenated(parts)
        before = self.stopped()
        self._callbacks.on_predict_batch_end(begin + self._group - 1, {"outputs": outputs})
        self._own.load_if_changed()
        self._is_over = self.stopped() and not before

    def stopped(self) -> bool:
        """Whether a callback has set `stop_predicting`.

        As in Keras, it ends with a whole group of batches, and there is one even if a callback has
        stopped before.
        """
        is_whole = self._begun > 0 and self._begun % self._group == 0
        return self._session.model.stop_predicting and is_whole


def _here(output: Any) -> Any:
    """Brings an output, dense, sparse or ragged, from its worker to the chief."""
    parts = [
        _tf_functions.on_chief(t.numpy(), t.dtype)
        for t in tf.nest.flatten(output, expand_composites=True)
    ]
    return tf.nest.pack_sequence_as(output, parts, expand_composites=True)
