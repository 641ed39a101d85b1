"""Measures a profile of a model: what the planner has to know of its training."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.cluster.local import LocalCluster
from tfps.compression import parse
from tfps.model import optimizer_traits
from tfps.planning.profile import Bucket, CodecCost, Dispatch, Profile, Transport
from tfps.profiling import arithmetic, codec_costs, transport
from tfps.profiling.clock import of_processes
from tfps.training.context import Context
from tfps.training.session import Session

# Codecs that are measured by default.
CODECS = (
    *("identity", "float16", "bfloat16", "int8", "ternary", "onebit"),
    *("topk:0.01", "randomk:0.1", "dgc:0.01", "powersgd:4"),
    *("difference:onebit", "difference:int8"),
)


@dataclasses.dataclass
class _Counted:
    """Seconds of processor time of a step, by role, and of a step's report."""

    worker: float
    ps: float
    chief: float
    wall: float


class ProfileRun:
    """Trains for some seconds on a cluster of one worker and one ps, and times the parts."""

    def __init__(
        self,
        make: Callable[..., Any],
        session: Callable[[Any], Session],
        cluster: Any,
        seconds: float,
        codecs: Sequence[str],
    ):
        """Checks the cluster.

        Args:
          make: makes a trainer of the model; takes `push` and `pull`.
          session: of a trainer.
          cluster: one worker and one ps, with processes of their own on this machine.
          seconds: that the whole measurement should take, about.
          codecs: texts of the codecs to measure.

        Raises:
          ConfigError: the cluster is another one, or a codec is unknown.
        """
        if not isinstance(cluster, LocalCluster) or not cluster.pids("ps"):
            raise errors.ConfigError(
                "a profile is measured with server processes on this machine; use "
                "LocalCluster(workers=1, ps=1, processes=True)"
            )
        if (cluster.num_workers, cluster.num_ps) != (1, 1):
            raise errors.ConfigError(
                f"a profile is measured with 1 worker and 1 ps, not {cluster.num_workers} and "
                f"{cluster.num_ps}; use LocalCluster(workers=1, ps=1, processes=True)"
            )
        for text in codecs:
            parse(text)
        self._make, self._session, self._cluster = make, session, cluster
        self._seconds, self._codecs = seconds, dict.fromkeys(("identity", *codecs))

    def run(self, model: keras.Model, x: Any, batch: Any) -> Profile:
        """Measures.

        Args:
          model: compiled.
          x: endless input, a `tf.data.Dataset` or a `dataset_fn`.
          batch: one of its batches.
        """
        begun = time.perf_counter()
        share = self._seconds / 4  # Each of the large parts; all codecs take another.
        trainer = self._make()
        counted = self._train(trainer, x, share, model.steps_per_execution)
        reported = self._train(trainer, x, share / 2, model.steps_per_execution, hooks=True)
        session = self._session(trainer)
        served = session.served
        plan, optimizer = served.store.plan, served.optimizer
        assert optimizer is not None
        side = next(iter(session.state.sides_in_use().values()))
        jit = bool(model.jit_compile)
        computing = arithmetic.gradients(
            served.puller, side.pusher, optimizer, served.program, batch, share
        )
        update = arithmetic.update(served.store, optimizer, jit, share / 4)
        buckets = tuple(
            Bucket(b.nbytes, i in plan.of_tables, b.kind.treatment.pushed)
            for i, b in enumerate(plan.buckets)
        )
        slot = max(0.02, self._seconds / 4 / (4 * len(self._codecs)))
        rates = transport.rates(self._now, share / 2)
        push: dict[str, CodecCost] = {}
        pull: dict[str, CodecCost] = {}
        for text in self._codecs:
            if not parse(text).tracks_receiver:
                push[text] = codec_costs.cost(plan, text, False, computing.rows, slot)
            if not parse(text).not_for_weights:
                pull[text] = codec_costs.cost(plan, text, True, computing.rows, slot)
        trained = sum(b.bytes for b in buckets if b.pushed)
        profile = Profile(
            model=model.name,
            cores=len(os.sched_getaffinity(0)),
            examples=_length(batch),
            steps_per_call=model.steps_per_execution,
            compute=computing.timing.seconds,
            threads=computing.timing.threads,
            spread=min(0.5, computing.timing.spread),
            first_gradient=1.0 if jit or _clips_by_all(optimizer) else 1 / 3,
            update=update,
            add=arithmetic.add(slot),
            slots=_slot_bytes(served.store) / max(1, trained),
            buckets=buckets,
            push=push,
            pull=pull,
            transport=Transport(*rates, 0.0, 0.0),
            dispatch=Dispatch(
                call=counted.chief * model.steps_per_execution,
                report=max(0.0, reported.chief - counted.chief) * model.steps_per_execution,
                batch_bytes=0.0 if callable(x) else float(_nbytes(batch)),
            ),
        )
        return _balanced(profile, counted).replace(
            about={
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "measured": time.strftime("%Y-%m-%d %H:%M:%S"),
                "took_seconds": round(time.perf_counter() - begun, 1),
                "step": vars(counted),
            }
        )

    def _train(
        self, trainer: Any, x: Any, seconds: float, group: int, hooks: bool = False
    ) -> _Counted:
        """Trains twice, for few and for more steps; the difference is of steps alone."""
        callbacks = [_Hook()] if hooks else []

        def fit(calls: int) -> tuple[float, ...]:
            before = self._now()
            trainer.fit(x, steps_per_epoch=calls * group, callbacks=callbacks, verbose=0)
            return tuple(b - a for a, b in zip(before, self._now(), strict=True))

        fit(2)  # Traces.
        few = 4
        first = fit(few)
        calls = max(20, min(2000, int(few * seconds / max(first[-1], 1e-3))))
        more = fit(few + calls)
        each = [max(0.0, b - a) / (calls * group) for a, b in zip(first, more, strict=True)]
        return _Counted(*each)

    def _now(self) -> tuple[float, float, float, float]:
        pids = self._cluster.pids
        return (
            of_processes(pids("worker")),
            of_processes(pids("ps")),
            time.process_time(),
            time.perf_counter(),
        )


class _Hook(keras.callbacks.Callback):
    """A hook for batches that looks at nothing."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Does nothing; that there is a hook lets the chief look at each call."""


def _balanced(profile: Profile, counted: _Counted) -> Profile:
    """The profile with what is left of a step when all that was timed by itself is taken away.

    The parts of a step were timed at other moments than the step, maybe on slower cores. Where they
    come to more than the step, the gradients or the update, which is most of it, is what is left.
    """
    push, pull = profile.push["identity"], profile.pull["identity"]
    up, down = push.row_bytes, pull.row_bytes
    for i, bucket in enumerate(profile.buckets):
        if not bucket.table:
            up, down = up + push.bytes[i] * bucket.pushed, down + pull.bytes[i]
    send, receive = profile.transport.send, profile.transport.receive
    worker = counted.worker - up * send - down * receive
    ps = counted.ps - down * send - up * receive
    update = profile.trained * profile.update
    return profile.replace(
        compute=min(profile.compute, max(worker, profile.compute / 2)),
        update=min(profile.update, max(ps, update / 2) / max(1, profile.trained)),
        transport=Transport(
            send, receive, max(0.0, worker - profile.compute), max(0.0, ps - update)
        ),
    )


def endless(x: Any, y: Any, batch_size: int | None) -> tuple[Any, Any]:
    """(input without an end, one of its batches), of what `fit` takes.

    Raises:
      DataError: it is input that cannot be repeated here.
    """
    if isinstance(x, tf.data.Dataset):
        if batch_size is not None or y is not None:
            raise errors.DataError("a Dataset yields whole batches; give neither y nor batch_size")
        return x.repeat(), _first(x)
    if callable(x):

        def repeated(context: Any) -> tf.data.Dataset:
            return x(context).repeat()

        return repeated, _first(x(Context(0, 1)))
    try:
        data = tf.data.Dataset.from_tensor_slices(x if y is None else (x, y))
    except (TypeError, ValueError) as e:
        raise errors.DataError(
            f"a profile is measured on arrays, a Dataset or a dataset_fn, not on "
            f"{type(x).__name__}; give one of these"
        ) from e
    data = data.repeat().batch(batch_size or 32, drop_remainder=True)
    return data, _first(data)


def _first(data: tf.data.Dataset) -> Any:
    for batch in data.take(1):
        return batch
    raise errors.DataError("a profile is measured on the input's first batch, but it has none")


def _length(batch: Any) -> int:
    return int(tf.nest.flatten(batch)[0].shape[0])


def _nbytes(batch: Any) -> int:
    return sum(int(np.prod(t.shape)) * t.dtype.size for t in tf.nest.flatten(batch))


def _slot_bytes(store: Any) -> int:
    state = [v for o in store.optimizers.values() for v in o.state]
    state += [v for o in store.row_optimizers.values() for v in o.state]
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in state)


def _clips_by_all(optimizer: Any) -> bool:
    """Whether gradients are clipped by the norm of all of them, so none leaves before the last."""
    one = optimizer_traits.whole(optimizer)
    return one is not None and bool(optimizer_traits.inner(one).global_clipnorm)
