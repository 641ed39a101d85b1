"""The epochs of one `fit`: each is run, validated, noted and saved; lost servers lead back."""

from collections.abc import Callable
from typing import Any

from tfps import _keras_models, errors
from tfps.training.epoch import Epoch
from tfps.training.exported_state import ChiefState
from tfps.training.feeds import Feed
from tfps.training.hooks import Hooks
from tfps.training.noted_epochs import NotedEpochs
from tfps.training.policy import ConsistencyPolicy
from tfps.training.recovery import recover
from tfps.training.session import Session
from tfps.training.snapshotter import GoneBack, Past, Snapshotter


class FitRun:
    """Runs the epochs of a `fit`.

    Attributes:
      stats: name -> a value for each epoch; see `Trainer.stats`.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        hooks: Hooks,
        policy: Callable[[], ConsistencyPolicy],
        snapshotter: Snapshotter | None,
        validate: Callable[[int], dict[str, float] | None],
        finalize: Callable[[], None],
        log_stats: bool,
    ):
        """Does not begin yet.

        Args:
          session: prepared for training.
          feed: of the input.
          hooks: of the user's callbacks, whose `on_train_begin` has been called.
          policy: gives the policy in force.
          snapshotter: None if nothing is saved.
          validate: from the index of an epoch that is over to the logs of its validation, or None
            if it has none.
          finalize: lets the servers do what an optimizer does at the end of training.
          log_stats: whether the logs carry `stats`.
        """
        self.stats: dict[str, list[float]] = {}
        self._session, self._state, self._model = session, session.state, session.model
        self._feed, self._hooks, self._policy = feed, hooks, policy
        self._snapshotter = snapshotter
        self._validate, self._finalize, self._log_stats = validate, finalize, log_stats
        self._noted = NotedEpochs()

    def run(self, initial_epoch: int, epochs: int) -> dict[str, Any] | None:
        """Trains until `epochs` are over, or training is stopped.

        Args:
          initial_epoch: where a `fit` begins that goes on from no state.
          epochs: index after the last epoch.

        Returns:
          The logs of the last epoch; None if there was none.

        Raises:
          TaskLost: a worker or ps went away, and training cannot go on.
          WorkerError: a step failed.
        """
        resumed = self._state.begin_fit()
        try:
            if resumed is not None:
                initial_epoch = self._resume(resumed)
            else:
                self._save_beginning(initial_epoch)
            first = _keras_models.initial_epoch(self._model, initial_epoch)
            return self._run(range(first, epochs))
        finally:
            self._state.end_fit()
            self._hooks.close()

    def _resume(self, chief: ChiefState) -> int:
        """Goes on where a restored state was exported; returns the epoch to begin with."""
        if chief.position is not None:
            self._feed.seek(chief.position)
        for epoch, logs in chief.history:
            self._model.history.on_epoch_end(epoch, logs)
        self._hooks.resume(chief.batch_hooks)
        return chief.epoch

    def _save_beginning(self, initial_epoch: int) -> None:
        """Takes the snapshot to which a `fit` goes back that loses servers before its first cut.

        Training begins when it is complete: from then on, what is lost can be brought back.
        """
        if self._snapshotter is not None:
            number = _keras_models.initial_epoch(self._model, initial_epoch)
            self._state.note_beginning(number, self._feed.position())
            self._snapshotter.take_surely()

    def _run(self, epochs: range) -> dict[str, Any] | None:
        number, logs, is_over = epochs.start, None, False
        while True:
            is_over = is_over or number >= epochs.stop
            try:
                with self._session.calls.errors_named():
                    if is_over:
                        self._end()
                        return logs
                    logs = self._run_epoch(number)
            except GoneBack as e:
                number = self._go_back(e.past)
                is_over = self._hooks.stop_at(number)
                continue
            except errors.TaskLost as e:
                number = self._go_back(recover(self._session, self._snapshotter, e))
                is_over = self._hooks.stop_at(number)
                continue
            is_over = self._model.stop_training
            number += 1

    def _end(self) -> None:
        """Does what follows the last epoch on the servers, saves it, and brings it to the chief."""
        self._finalize()
        if self._snapshotter is not None:
            self._snapshotter.end_fit()
        self._session.served.store.copy.fetch()

    def _go_back(self, past: Past) -> int:
        """Lets `fit` go on from a snapshot; returns the index of its epoch."""
        chief = past.state.chief
        if chief.position is not None:
            self._feed.seek(chief.position)
        self._hooks.go_back()
        return chief.epoch

    def _run_epoch(self, number: int) -> dict[str, Any]:
        """Runs one epoch, or what is left of it; returns its logs."""
        opened = self._state.begin_epoch(number)
        epoch = Epoch(
            self._session, self._feed, self._hooks, self._policy, self._snapshotter, opened
        )
        optimizer = self._session.served.optimizer
        if opened is None:
            self._noted.begin_again(number, optimizer)
        writes = self._writes
        try:
            self._hooks.epoch_begin(number)
        finally:
            if opened is None:
                self._noted.begin(number, optimizer)
        if opened is None and self._writes != writes:
            self._state.note_beginning(number, self._feed.position())
            self._save_what_hooks_wrote()
        logs = epoch.run()
        self._save_if_due(leaving=True)
        if self._hooks.was_called(number):
            # It had come to its end before training went back.
            logs = self._noted.logs[number]
            self._noted.leave_again(number, optimizer)
            self._hooks.epoch_over(number)
            self._state.note_epoch(number, logs, self._feed.position())
            return logs
        evaluated = self._validate(number)
        if evaluated is not None:
            self._save_if_due(leaving=True)
            logs.update({f"val_{name}": value for name, value in evaluated.items()})
        return self._note(number, epoch, logs)

    def _note(self, number: int, epoch: Epoch, logs: dict[str, Any]) -> dict[str, Any]:
        """Notes an epoch that is over and calls its hooks; returns its logs."""
        losses, lines = self._session.losses.take()
        stats = {**epoch.stats, "workers": float(len(self._session.calls.living))}
        self._noted.keep(self.stats, number, stats, losses)
        stats.update(losses)
        if self._log_stats:
            logs = {**logs, **stats}
        self._state.note_epoch(number, logs, self._feed.position())
        self._noted.leave_again(number, self._session.served.optimizer)
        writes = self._writes
        try:
            recorded = self._hooks.epoch_end(number, logs, stats, epoch.staleness, lines)
        finally:
            self._noted.leave(number, self._session.served.optimizer)
        self._state.note_logs(recorded)
        self._noted.logs[number] = recorded
        if self._writes != writes:
            self._save_what_hooks_wrote()
        self._save_if_due()
        return logs

    @property
    def _writes(self) -> int:
        """How often weights that hooks had changed were taken to the servers."""
        return self._session.served.store.copy.writes

    def _save_what_hooks_wrote(self) -> None:
        """Takes a snapshot after hooks of an epoch that have changed weights, and waits for it.

        Those hooks are not called again, so nothing may lead back to before them.
        """
        if self._snapshotter is not None:
            self._snapshotter.take_surely()

    def _save_if_due(self, leaving: bool = False) -> None:
        """Takes a snapshot between two cuts within epochs.

        Args:
          leaving: whether only the end of the process is a reason.
        """
        own = self._snapshotter
        if own is not None and (own.is_leaving or (own.is_due and not leaving)):
            own.take()
