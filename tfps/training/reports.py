"""When the chief learns what calls on workers came to: at once, or at the end of a run."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfps.cluster.calls import WorkerCalls
from tfps.worker.own_values import OwnValues
from tfps.worker.tally import Report


class Reports:
    """Takes in the reports of calls, or leaves them on their workers.

    To bring a report to the chief costs as much as the call. So where nobody looks at it and the
    number of batches is known before, it stays on the worker, and the next call adds its own.
    """

    def __init__(self, calls: WorkerCalls, values: OwnValues, defers: bool):
        """Makes an empty report on every worker.

        Args:
          calls: to the workers, none of which is at work.
          values: of the step.
          defers: whether reports may stay on the workers until `bring`.
        """
        self._shapes = values.shapes
        self._defers = defers
        self.blanks = calls.run_on_each(lambda worker: values.blank())
        # Per worker, steps and batches in a report that has stayed there.
        self._later = [(0, 0)] * calls.num_workers

    def lost(self, worker: int) -> None:
        """Notes that a worker is lost, with the report that has stayed there."""
        self._later[worker] = 0, 0

    def end(self, worker: int, vector: tf.Tensor) -> Report | None:
        """Brings the report that has stayed on a worker; called in the thread of a call.

        Args:
          worker: index.
          vector: the report there.
        """
        if self._later[worker] == (0, 0):
            return None
        self._later[worker] = 0, 0
        return Report.of(vector, self._shapes, worker)

    def take(
        self, worker: int, work: Any, vector: tf.Tensor, defers: bool = True
    ) -> tuple[Report, tf.Tensor]:
        """Takes in what a call reports; called in the thread of the call.

        Args:
          worker: index.
          work: what the call did.
          vector: what it returned.
          defers: whether the report may stay where it is.

        Returns:
          (what is known of the call, and of all calls before if the report is brought here; the
          report that the worker's next call adds to).
        """
        steps, taken = self._later[worker]
        if self._defers and defers and work.is_sure:
            self._later[worker] = steps + work.count, taken + work.takes
            return Report.later(work.count, work.takes, worker), vector
        report = Report.of(vector, self._shapes, worker)
        # The calls before have told their steps.
        report = dataclasses.replace(report, steps=report.steps - steps, taken=report.taken - taken)
        if not report.steps:
            # Nobody is told of work without steps, so what was before stays where it is.
            self._later[worker] = steps, taken + report.taken
            return Report.later(0, report.taken, worker), vector
        self._later[worker] = 0, 0
        return report, self.blanks[worker]

    def bring(self, calls: WorkerCalls, vectors: list[tf.Tensor]) -> list[Report]:
        """Brings the reports that have stayed on workers.

        Args:
          calls: to the workers, none of which is at work.
          vectors: per worker, the report there.
        """
        late = [worker for worker, later in enumerate(self._later) if later != (0, 0)]
        if not late:
            return []
        arrays = calls.run_on_each(lambda w: vectors[w].numpy(), late)
        here = [w for w in late if arrays[w] is not None]
        for w in here:
            self._later[w] = 0, 0
        return [Report.of(arrays[w], self._shapes, w) for w in here]
