"""One epoch of training."""

import time
from collections.abc import Callable

import keras

from tfps import _keras, errors
from tfps.model import optimizer_traits
from tfps.training import callbacks as callbacks_lib
from tfps.training.consistency import Consistency
from tfps.training.feeds import Lookahead
from tfps.training.session import Session
from tfps.training.work_loop import MetricTotals, WorkLoop
from tfps.worker.gradient import at_rest
from tfps.worker.prefetch_step import PrefetchStep
from tfps.worker.tally import Report


class Epoch:
    """Trains over a feed once, with whatever policy is in force, and calls the batch hooks."""

    def __init__(
        self,
        session: Session,
        feed,
        callbacks: keras.callbacks.CallbackList,
        policy: Callable[[], Consistency],
    ):
        """Keeps its arguments.

        Args:
          session: prepared for training.
          feed: of the input.
          callbacks: of the user.
          policy: gives the one to follow; when it changes, batches that workers hold are
            trained on first.
        """
        self._session = session
        self._feed = feed
        self._callbacks = callbacks
        self._policy = policy
        self._model, self._store = session.model, session.store
        hooked = callbacks.callbacks
        self._watched = any(map(callbacks_lib.has_batch_hooks, hooked))
        self._reads_weights = any(map(callbacks_lib.reads_weights_in_batches, hooked))
        self._totals = MetricTotals(session.program)
        self._outer = False  # whether updates are those of an outer optimizer
        self._applied = self._updates()

    @property
    def staleness(self):
        """Pushes by the number of updates that they missed; see `report.Tally`."""
        return self._totals.tally.staleness

    def run(self) -> dict:
        """Trains; returns the epoch's logs.

        Raises:
          DataError: there was no batch.
        """
        started = time.perf_counter()
        self._feed.begin_epoch()
        try:
            steps = self._train()
        except BaseException:
            # Outside of `fit` the model is the truth, without what was not fetched.
            self._store.forget_sync()
            raise
        self._feed.end_epoch()
        seconds = time.perf_counter() - started
        if not self._totals.examples and not self._model.stop_training:
            raise errors.DataError("fit was given no batch; the input is empty")
        self._store.fetch()
        # Updates that loss scaling skipped are not counted.
        self._applied = self._updates()
        _keras.set_iterations(self._model.optimizer, self._applied)
        tally = self._totals.tally
        return {
            **self._totals.logs(),
            "examples_per_second": self._totals.examples / seconds,
            "steps_per_second": steps / seconds,
            "staleness": tally.total_staleness / max(1.0, tally.pushes),
            "staleness_max": tally.max_staleness,
            "push_bytes_per_step": tally.bytes_up / max(1, steps),
            "pull_bytes_per_step": tally.bytes_down / max(1, steps),
        }

    def _train(self) -> int:
        steps = 0
        while True:
            policy = self._policy()
            warming = self._is_warming(policy)
            steps = self._follow(policy, warming, steps)
            if self._model.stop_training or not self._has_changed(policy, warming):
                return steps

    def _is_warming(self, policy: Consistency) -> bool:
        updates = self._applied - self._session.outer_updates
        return self._session.is_warming(policy, updates)

    def _has_changed(self, policy: Consistency, warming: bool) -> bool:
        return self._policy() is not policy or self._is_warming(policy) != warming

    def _follow(self, policy: Consistency, warming: bool, first: int) -> int:
        """Trains until the end of the feed, or until it goes on in another way.

        Args:
          policy: to follow.
          warming: whether gradients do not pass through codecs yet.
          first: index of the next batch.

        Returns:
          The index after the last batch.
        """
        session, feed, dispatcher = self._session, self._feed, self._session.dispatcher
        feed.regroup(policy.steps_per_call(self._model.steps_per_execution))
        key, way = session.mode(policy, warming)
        self._outer = not way.counts_updates
        run = session.step(("fit", key, policy.delay), feed, lambda: way.step(feed, policy.delay))
        way.pusher.clear()
        handles = way.pusher.handles()
        # Residuals survive from epoch to epoch and from policy to policy, but what is left
        # of a gradient is no part of a difference of parameters. Those are pulled anew.
        kind = bool(policy.local_steps)
        # Nothing else may hold what was before, or it would stay on the workers.
        carries = session.carries.pop(kind, [None] * dispatcher.num_workers)
        carries = dispatcher.run_on_each(lambda w, old=carries: run.start(handles, old[w]))
        session.carries[kind] = carries

        def rate():
            return optimizer_traits.settable_rate(self._model.optimizer)

        def number(count):
            session.number += count
            return session.number - count

        def prepare(worker, work):
            chosen = work.takes, number(work.takes), rate()

            def call():
                vector, carries[worker] = run(handles, work.source, carries[worker], *chosen)
                return Report.of(vector, run.initial)

            return call

        def push(worker, share, expected):
            chosen = number(1), share, expected, rate()

            def call():
                vector, carries[worker] = run.push(handles, carries[worker], *chosen)
                return Report.of(vector, run.initial)

            return call

        def changed():
            return self._has_changed(policy, warming)

        def stopped():
            return self._model.stop_training or (changed() and not ahead)

        ahead = isinstance(run, PrefetchStep)
        if ahead:
            # Under another policy, too, what the workers hold already is trained on.
            feed = Lookahead(feed, dispatcher.num_workers, ended=changed)
        last = WorkLoop(
            dispatcher,
            feed,
            prepare,
            self._begin,
            self._end,
            policy.schedule(),
            push,
            stopped=stopped,
            first=first,
        ).run()
        for vector in dispatcher.run_on_each(lambda w: run.finish(handles, carries[w], rate())):
            if vector is not None:
                self._count(Report.of(vector, run.initial))
        session.carries[kind] = [at_rest(carry) for carry in carries]
        return last

    def _updates(self) -> int:
        return self._store.iterations() + self._session.outer_updates

    def _begin(self, first):
        self._callbacks.on_train_batch_begin(first)
        if self._reads_weights:
            self._store.load_if_changed()

    def _count(self, report):
        self._applied += int(report.tally.updates)
        self._session.outer_updates += int(report.tally.updates) * self._outer
        self._totals.add(report)

    def _end(self, last, first, report):
        del first
        self._count(report)
        if not self._watched:
            return
        _keras.set_iterations(self._model.optimizer, self._applied)
        if self._reads_weights:
            self._store.fetch()
        self._callbacks.on_train_batch_end(last, self._totals.logs())
        if self._reads_weights:
            self._store.load_if_changed()
